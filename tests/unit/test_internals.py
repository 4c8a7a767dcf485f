"""What we use of other libraries that is not public: each part fails here first when its library changes it."""

import inspect
import json
import signal
from types import SimpleNamespace

import bentoml
import pytest
import uvicorn.config
from circus.sighandler import SysHandler
from prometheus_client import CollectorRegistry
from pyarrow import fs
from ray.data.checkpoint import CheckpointManager, checkpoint_writer
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.bentoml_internals import SHARED_FOLDER, at_hangup, bentoml_cors_options, service_behind
from service.bulk.ray_internals import checkpoint_config, checkpoint_file, committed_part, is_pending
from service.monitoring.prometheus_internals import (
    DeferredCounter,
    DeferredHistogram,
    merge_files,
    read_file,
    write_file,
)


def test_bentoml_makes_its_application_where_we_replace_it():
    assert list(inspect.signature(bentoml.Service.to_asgi).parameters) == ["self", "is_main"]
    served = bentoml.service(name="behind", service_class=service_behind(lambda app: ("behind", app)))(
        type("Behind", (), {})
    )
    name, inner = served.to_asgi()
    assert name == "behind"
    assert callable(inner)


def test_bentomls_cors_setting_is_off_and_readable():
    assert bentoml_cors_options() == {}


def test_the_supervisor_acts_on_hangup_once_for_each_folder_of_workers(monkeypatch, tmp_path):
    monkeypatch.setattr(SysHandler, "handle_hup", SysHandler.handle_hup)
    folders = []
    at_hangup(folders.append)
    arbiter = SimpleNamespace(iter_watchers=lambda: [SimpleNamespace(env={SHARED_FOLDER: str(tmp_path)})] * 2)
    handler = SysHandler.__new__(SysHandler)
    handler.controller = SimpleNamespace(arbiter=arbiter)
    handler.handle_hup()
    assert folders == [tmp_path]
    assert SysHandler.SIG_NAMES[signal.SIGHUP] == "hup"


REPLACED = [
    "connection_made",
    "connection_lost",
    "data_received",
    "on_message_begin",
    "on_header",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "_start_asgi_task",
    "_unset_keepalive_if_required",
]


@pytest.mark.parametrize(
    ("owner", "names"), [(HttpToolsProtocol, REPLACED), (RequestResponseCycle, ["receive", "send", "run_asgi"])]
)
def test_uvicorns_protocol_has_the_methods_that_we_replace(owner, names):
    assert [name for name in names if not callable(getattr(owner, name, None))] == []


def test_uvicorn_takes_its_protocol_from_the_table_that_we_change():
    assert "auto" in uvicorn.config.HTTP_PROTOCOLS


def test_deferred_metrics_are_counted_like_those_of_the_client():
    registry = CollectorRegistry()
    histogram = DeferredHistogram("h", "x", registry=registry, buckets=(1, 2))
    counter = DeferredCounter("c", "x", registry=registry)
    histogram.pending += [0.5, 1.0, 1.5, 5.0]
    counter.pending += [1, 2.5]
    assert registry.get_sample_value("h_count") == 0
    histogram.count()
    counter.count()
    buckets = [registry.get_sample_value("h_bucket", {"le": le}) for le in ("1.0", "2.0", "+Inf")]
    assert buckets == [2, 3, 4]
    assert registry.get_sample_value("h_sum") == 8
    assert registry.get_sample_value("c_total") == 3.5


def test_files_of_the_client_are_written_read_and_merged(tmp_path):
    key = json.dumps(["jobs", "jobs_total", {}, "help"], sort_keys=True)
    paths = [tmp_path / f"counter_{pid}.db" for pid in (1, 2)]
    for path, value in zip(paths, (3.0, 4.0), strict=True):
        write_file(path, {key: value})
        assert list(read_file(path)) == [(key, value)]
    (metric,) = merge_files(map(str, paths))
    assert [sample.value for sample in metric.samples] == [7.0]


def test_ray_writes_checkpoints_under_the_names_that_we_read():
    source = inspect.getsource(checkpoint_writer)
    assert ".pending" in source
    assert committed_part(checkpoint_file("part-1")) == "part-1"
    assert committed_part("part-1.pending.parquet") is None
    assert is_pending("part-1.pending.parquet")
    config = checkpoint_config("/folder", fs.LocalFileSystem())
    assert issubclass(config.checkpoint_manager_cls, CheckpointManager)
    assert "load_checkpoint" in vars(CheckpointManager)
