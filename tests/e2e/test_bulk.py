"""Bulk scoring as users run it: real Ray, processes that are killed, disks that fill up.

A Ray of its own is started where that is the point; else a cluster is shared. Expected rows come from one process.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import missing
from files import png
from server import ROOT
from typer.testing import CliRunner

from model import load_artifact
from model.input_spec import FASHION_MNIST
from service.bulk.__main__ import app
from service.bulk.inputs.discovery import open_source
from service.bulk.job import KEEP_MEMORY
from service.bulk.scoring import Scorer
from service.inference.limits import ImageLimits
from service.schemas.parameters import Parameters
from training.data import FashionMNIST

Found = TypeVar("Found")

COUNT = 10 * 4096
SECONDS = 600  # until a program that hangs is a failure


def command(source: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "service.bulk", str(source), str(out), "--samples", "30", *options]


def bulk(source: Path, out: Path, *options: str, status: int = 0) -> str:
    done = subprocess.run(
        command(source, out, *options), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def rows(out: Path) -> pa.Table:
    return pq.read_table(out).sort_by("id")


def committed(out: Path) -> int:
    """Rows in parts that are whole."""
    found = (out / "_unfinished" / "checkpoint").glob("*.parquet")
    return sum(pq.read_metadata(path).num_rows for path in found if not path.name.endswith(".pending.parquet"))


@contextlib.contextmanager
def running(source: Path, out: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    log = out.with_suffix(".log")
    with log.open("a") as file:
        process = subprocess.Popen(command(source, out, *options), cwd=ROOT, stdout=file, stderr=file, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait(process: "subprocess.Popen[str]", until: Callable[[], Found]) -> Found:
    """Until there is something: return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := until()):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def workers(process: "subprocess.Popen[str]", at: str = "") -> list[psutil.Process]:
    """Those that live; or those that are at work, which Ray calls "submit"."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(child.cmdline())
            found += [child] if "MapWorker" in title and at in title else []
    return found


@dataclass(frozen=True)
class RayCluster:
    """Of two nodes on this machine."""

    process: "subprocess.Popen[str]"
    address: str

    def lose_node(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait_for_new_node(self) -> None:
        assert self.process.stdout.readline().strip() == self.address


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    script = Path(__file__).with_name("two_nodes.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            yield RayCluster(process, process.stdout.readline().strip())
        finally:
            process.stdin.close()
            process.wait(SECONDS)


def scored(source: Path, **asked: str) -> pa.Table:
    """The rows without Ray, in the order of their ids."""
    images = open_source(str(source), image="image", identifier=None, max_bytes=2**20, spec=FASHION_MNIST)
    score = Scorer(
        load_artifact(),
        Parameters.gather(({"samples": "30"} | asked).items()),
        encoded=images.encoded,
        limits=ImageLimits(2**20),
    )
    tables = [score(table) for shard in images.shards for table in shard.read(pa.array([], pa.string()), include=False)]
    return pa.concat_tables(tables).sort_by("id")


@pytest.fixture(scope="module")
def source(tmp_path_factory, fashion: FashionMNIST) -> Path:
    path = tmp_path_factory.mktemp("in") / "images.npy"
    np.save(path, fashion.train.images_B[:COUNT].numpy())
    return path


@pytest.fixture(scope="module")
def expected(source: Path) -> pa.Table:
    return scored(source)


def test_a_folder_is_scored_despite_broken_files(cluster: RayCluster, tmp_path, fashion: FashionMNIST):
    folder, out = tmp_path / "in", tmp_path / "out"
    for b, pixels in enumerate(fashion.test.images_B[:300].numpy()):
        path = folder / f"{b % 3}" / f"{b}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels) if b % 100 else b"broken")
    report = tmp_path / "report.html"
    said = bulk(folder, out, "--seed", "5", "--report", str(report), "--address", cluster.address)
    assert "300 rows" in said
    assert "error: unsupported-image-format" in said
    found = rows(out)
    assert found.filter(pc.is_valid(found["error"]))["id"].to_pylist() == ["0/0.png", "1/100.png", "2/200.png"]
    assert found.equals(scored(folder, seed="5"))
    assert report.read_text().startswith("<!doctype html>")
    again = [*map(str, (folder, out)), "--samples", "30", "--resume"]
    assert CliRunner().invoke(app, [*again, "--seed", "5"]).output.count("300 rows") == 1
    refused = CliRunner().invoke(app, [*again, "--seed", "6"])
    assert refused.exit_code == 1
    assert "seed was 5, is 6" in refused.output


def test_a_killed_or_interrupted_run_resumes_to_the_same_rows(source, expected, tmp_path):
    """The driver is killed at 30 % and interrupted at 50 %; then a worker is killed.

    Later, both workers may end their last parts at once.
    """
    out = tmp_path / "out"
    for part, number, status in ((0.3, signal.SIGKILL, -signal.SIGKILL), (0.5, signal.SIGTERM, 130)):
        with running(source, out, "--resume") as process:
            wait(process, lambda part=part: workers(process) and committed(out) >= part * COUNT)
            process.send_signal(number)
            assert process.wait(SECONDS) == status
        assert part * COUNT <= committed(out) < COUNT
        assert not (out / "_SUCCESS").exists()
        assert pq.read_table(out).num_rows == 0
    assert "--resume continues" in out.with_suffix(".log").read_text()
    with running(source, out, "--resume") as process:
        victim, *_ = wait(process, lambda: workers(process, at="submit"))
        assert "ReadImages->MapBatches(Scorer)" in " ".join(victim.cmdline())
        assert victim.environ().items() >= KEEP_MEMORY.items()  # from its start, as glibc reads it then
        victim.kill()
        assert process.wait(SECONDS) == 0
    assert f"{COUNT:,} rows in {out}" in out.with_suffix(".log").read_text()
    assert rows(out).equals(expected)
    assert (out / "_SUCCESS").exists()


def test_a_full_disk_is_reported_and_nothing_is_lost(cluster: RayCluster, source, expected, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        missing("a small disk: only root may mount one")
    try:
        said = bulk(source, disk / "out", "--address", cluster.address, status=1)
        assert "No space left on device; --resume continues" in " ".join(said.splitlines()[-1:])
        assert not (disk / "out" / "_SUCCESS").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        bulk(source, disk / "out", "--address", cluster.address, "--resume")
        assert rows(disk / "out").equals(expected)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_two_machines_share_the_work_and_one_is_lost(cluster: RayCluster, source, expected, tmp_path):
    out = tmp_path / "out"
    with running(source, out, "--address", cluster.address) as process:
        wait(process, lambda: len({worker.ppid() for worker in workers(cluster.process, at="submit")}) == 2)
        cluster.lose_node()
        assert process.wait(SECONDS) == 0
    cluster.wait_for_new_node()
    assert rows(out).equals(expected)
