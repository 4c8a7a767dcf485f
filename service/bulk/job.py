"""Reads, scores and writes on Ray Data."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from service.bulk.inputs.source import Source, one_line
from service.bulk.output import CHECKPOINT, PARTS, Output
from service.bulk.ray_internals import checkpoint_config
from service.bulk.reading import Images
from service.bulk.scoring import REPEATED, Scorer

_CPUS_OF_A_WORKER = 0.5  # as Ray counts; the other half lets the workers of a lost machine go on elsewhere
_NO_CPUS = 0  # so that writing never waits for one that the workers have: on few CPUs, nothing would go on
# Of the workers, for glibc: to give no memory back that the next images need again, as new pages take time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
_BLOCK_BYTES = 2**25
_KNOCK_SECONDS = 10
_STORE_BYTES = 2**28  # of an embedded Ray's object store


class JobError(RuntimeError):
    """A run that came to no end; one line says why."""


@contextmanager
def started(address: str | None, workers: int | None) -> Iterator[int]:
    """Join a cluster, or start a Ray of our own; yield the number of workers: that of the cores unless given.

    Raises:
        JobError: there is no such cluster.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is told once, by us
    own = workers or len(os.sched_getaffinity(0))
    try:
        _knock(address)
        with _without_standard_error():
            if address:
                ray.init(address, **quiet)
            else:
                ray.init("local", num_cpus=own, object_store_memory=_STORE_BYTES, include_dashboard=False, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise JobError(f"Ray can't be reached at {address or 'this machine'} ({one_line(error)})") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own would end us without a word
    try:
        yield workers or int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """See that somebody answers there: Ray itself would go on trying without a word."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """Silence what Ray's C++ parts print there about their own settings."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def score(source: Source, output: Output, done: pa.Array, *, workers: int, **scorer: Any) -> None:
    """Write a row for each image that is not done; needs a Ray that is started.

    Args:
        source: the images.
        output: where to, begun.
        done: ids that are not wanted again.
        workers: processes that score.
        scorer: arguments of `Scorer`.

    Raises:
        JobError: reading or writing failed.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    context.memory_usage_poll_interval_s = None  # which nobody would see, and which stops a worker to count its pages
    context.checkpoint_config = checkpoint_config(output.at(CHECKPOINT), output.filesystem)
    workers = min(workers, len(source.shards))
    # The same for both, so that Ray Data makes one operator of them: what a worker scores it has read itself.
    process: dict[str, Any] = {"num_cpus": _CPUS_OF_A_WORKER, "runtime_env": {"env_vars": KEEP_MEMORY}}
    try:
        images = ray.data.read_datasource(
            Images(source.shards, ray.put(done)), override_num_blocks=len(source.shards), **process
        )
        rows = images.map_batches(
            Scorer,
            fn_constructor_kwargs=scorer,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=workers),
            **process,
        )
        rows.write_parquet(
            output.at(PARTS),
            filesystem=output.filesystem,
            ray_remote_args={"num_cpus": _NO_CPUS},
            concurrency=-(-workers // 2),
            use_dictionary=REPEATED,  # for numbers that hardly repeat, a dictionary takes time and space
        )
    except Exception as error:
        raise JobError(f"{_what(error)}; --resume goes on from what is written") from error


def _what(error: BaseException) -> str:
    """What went wrong below all that Ray wraps around it, without its advice."""
    while (below := getattr(error, "cause", None) or error.__cause__) is not None:
        error = below
    told = getattr(error, "strerror", None) or str(error)
    return next(iter(told.splitlines()), type(error).__name__)
