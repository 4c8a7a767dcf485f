"""Counters of dead workers never fall, whatever happens while they are merged, and their files go."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from server import ROOT

from service.monitoring.multiprocess_files import finish_merge, merged

NOBODY = 5_000_000  # process ids from here on are larger than Linux gives
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemin", "gauge_livemax")


def write(folder: Path, pid: int, *, value: float = 1.0, labels: int = 3) -> None:
    """The files of a process, as Prometheus' client writes them."""
    for kind in KINDS:
        file = MmapedDict(str(folder / f"{kind}_{pid}.db"))
        for label in range(labels):
            suffix = "_total" if kind == "counter" else ""
            file.write_value(mmap_key(kind, kind + suffix, ("one",), (str(label),), "help"), value, 0.0)
        file.close()


def totals(folder: Path) -> dict[tuple, float]:
    with merged(folder) as files:
        metrics = MultiProcessCollector.merge(files, accumulate=False)
    return {
        (sample.name, *sample.labels.items()): sample.value
        for metric in metrics
        for sample in metric.samples
        if metric.type == "counter"
    }


def test_a_thousand_deaths_leave_no_more_files_than_one(tmp_path):
    write(tmp_path, os.getpid(), value=0.5)
    for death in range(1000):
        write(tmp_path, NOBODY + death, value=death)
        if death in {0, 500}:
            totals(tmp_path)
    found = totals(tmp_path)
    assert set(found.values()) == {sum(range(1000)) + 0.5}
    assert len(list(tmp_path.glob("*.db"))) == len(KINDS) + 2
    assert totals(tmp_path) == found


class Killed(BaseException):
    """Ends the merge where it is."""


@pytest.mark.parametrize("step", range(20))
def test_killed_merge_counts_everything_once(tmp_path, monkeypatch, step):
    for death in range(3):
        write(tmp_path, NOBODY + death)
    totals(tmp_path)
    for death in range(3, 6):
        write(tmp_path, NOBODY + death)
    steps = itertools.count()

    def counted(call):
        def wrapped(*args, **options):
            if next(steps) == step:
                raise Killed
            return call(*args, **options)

        return wrapped

    with monkeypatch.context() as patched:
        for owner, name in ((Path, "replace"), (Path, "unlink"), (MmapedDict, "write_value")):
            patched.setattr(owner, name, counted(getattr(owner, name)))
        try:
            totals(tmp_path)
        except Killed:
            pass
        else:
            assert step >= 13  # there are that many
    assert set(totals(tmp_path).values()) == {6.0}
    assert len(list(tmp_path.glob("*.db"))) == 2


def test_scrapes_at_the_same_time_all_see_all(tmp_path):
    write(tmp_path, os.getpid())
    for death in range(200):
        write(tmp_path, NOBODY + death)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(totals, [tmp_path] * 40):
            assert set(found.values()) == {201.0}


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 100, b"\x40\0\0\0\0\0\0\0" + b"\xff" * 500])
@pytest.mark.parametrize("pid", [NOBODY, os.getpid()], ids=["dead", "alive"])
def test_a_file_that_is_not_whole_spoils_no_scrape(tmp_path, content, pid):
    write(tmp_path, NOBODY + 1)
    (tmp_path / f"counter_{pid}.db").write_bytes(content)
    assert set(totals(tmp_path).values()) == {1.0}
    assert (tmp_path / f"counter_{pid}.db").exists() == (pid == os.getpid())


def test_other_files_are_left_alone(tmp_path):
    write(tmp_path, os.getpid())
    others = [tmp_path / name for name in ("predictions-5000000", "mcd-reload", "gauge_all_5000000.db")]
    for other in others[:2]:
        other.write_bytes(b"x")
    MmapedDict(str(others[2])).close()
    totals(tmp_path)
    assert all(other.exists() for other in others)


# A worker whose process id a killed merge has planned to remove: it counts 7, another process has counted 5 and died.
REUSED = """
import json, os
from pathlib import Path
import test_multiprocess_files as shared
folder, pid = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), os.getpid()
shared.write(folder, pid, value=5.0)
(folder / f"counter_{pid}.db").replace(folder / "counter.prepared")  # what the merge has summed up
shared.write(folder, pid, value=5.0)
(folder / "merge.json").write_text(json.dumps([f"{kind}_{pid}.db" for kind in shared.KINDS]))
from service.monitoring.metrics import Metrics
metrics = Metrics()
metrics.route("/x", "POST", (200,), timed=False)
for _ in range(7):
    metrics.begin()
    metrics.request("/x", "POST", 200, 0.1)
for _ in range(2):
    text = metrics.expose().decode()
print([line for line in text.splitlines() if line.startswith(("counter_total", "mcd_http_requests_total"))])
"""


def test_worker_with_reused_process_id_loses_no_counts(tmp_path):
    """The merge was killed between its plan and the removals."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", REUSED], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'counter_total{one="0"} 5.0' in done.stdout
    assert 'mcd_http_requests_total{code="200",method="POST",route="/x"} 7.0' in done.stdout


def test_new_worker_waits_for_running_merge(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        with merged(tmp_path):
            waiting = pool.submit(finish_merge, tmp_path)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
        waiting.result(30)
