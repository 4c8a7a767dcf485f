"""Bulk scoring as users run it: real Ray, processes that are killed, disks that fill up."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import missing
from files import png
from server import ROOT

from service.bulk.job import KEEP_MEMORY
from training.data import FashionMNIST

Found = TypeVar("Found")

COUNT = 6 * 4096
SECONDS = 240


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


@pytest.fixture(scope="module")
def source(tmp_path_factory, fashion: FashionMNIST) -> Path:
    path = tmp_path_factory.mktemp("in") / "images.npy"
    np.save(path, fashion.train.images_B[:COUNT].numpy())
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, source: Path) -> pa.Table:
    out = tmp_path_factory.mktemp("out") / "whole"
    assert f"{COUNT:,} rows in {out}" in bulk(source, out)
    return rows(out)


def test_a_folder_with_broken_files_is_scored_as_the_service_does(client, tmp_path, fashion: FashionMNIST):
    folder = tmp_path / "in"
    for b, pixels in enumerate(fashion.test.images_B[:300].numpy()):
        path = folder / f"{b % 3}" / f"{b}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels) if b % 100 else b"broken")
    told = bulk(folder, tmp_path / "out", "--seed", "5", "--report", str(tmp_path / "report.html"))
    assert "300 rows" in told
    assert "error: unsupported-image-format" in told
    found = {row["id"]: row for row in rows(tmp_path / "out").to_pylist()}
    assert len(found) == 300
    assert [name for name, row in found.items() if row["error"]] == ["0/0.png", "1/100.png", "2/200.png"]
    asked = [b for b in range(300) if b % 100][:200]
    files = [("images", (folder / f"{b % 3}" / f"{b}.png").read_bytes()) for b in asked]
    answers = client.post("/predict_batch", files=files, params={"samples": 30, "seed": 5}).json()["results"]
    for b, answer in zip(asked, answers, strict=True):
        row = found[f"{b % 3}/{b}.png"]
        for name in ("label", "confidence", "probabilities", "prediction_set", "abstain", "abstain_reason", "warnings"):
            assert row[name] == answer[name]
        for name, value in answer["uncertainty"].items():
            assert row[name] == value
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert bulk(folder, tmp_path / "out", "--seed", "5", "--resume").count("300 rows") == 1
    assert "seed was 5, is 6" in bulk(folder, tmp_path / "out", "--seed", "6", "--resume", status=1)


def test_a_killed_run_goes_on_to_the_same_rows(source, whole, tmp_path):
    """The driver twice, at 30 % and 50 %; then a worker. Later, both workers may end their last parts at once."""
    out = tmp_path / "out"
    for part in (0.3, 0.5):
        with running(source, out, "--resume") as process:
            wait(process, lambda part=part: committed(out) >= part * COUNT)
            process.kill()
            process.wait()
        assert part * COUNT <= committed(out) < COUNT
        assert not (out / "_SUCCESS").exists()
        assert pq.read_table(out).num_rows == 0
    with running(source, out, "--resume") as process:
        victim, *_ = wait(process, lambda: workers(process, at="submit"))
        assert victim.environ().items() >= KEEP_MEMORY.items()  # from its start, as glibc reads it then
        victim.kill()
        assert process.wait(SECONDS) == 0
    assert rows(out).equals(whole)
    assert (out / "_SUCCESS").exists()


def test_a_full_disk_is_told_of_and_nothing_is_lost(source, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        missing("a small disk: only root may mount one")
    try:
        told = bulk(source, disk / "out", status=1)
        assert "No space left on device; --resume continues" in " ".join(told.splitlines()[-1:])
        assert not (disk / "out" / "_SUCCESS").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        bulk(source, disk / "out", "--resume")
        assert rows(disk / "out").equals(whole)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_two_machines_share_the_work_and_one_may_be_lost(source, whole, tmp_path):
    script = Path(__file__).with_name("two_nodes.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as cluster:
        try:
            address = cluster.stdout.readline().strip()
            out = tmp_path / "out"
            with running(source, out, "--address", address) as process:
                wait(process, lambda: len({worker.ppid() for worker in workers(cluster, at="submit")}) == 2)
                cluster.stdin.write("lose one\n")
                cluster.stdin.flush()
                assert process.wait(SECONDS) == 0
            assert rows(out).equals(whole)
        finally:
            cluster.stdin.close()
            cluster.wait(60)


def test_a_cluster_that_is_not_there_is_told_of(source, tmp_path):
    assert "Ray can't be reached at 127.0.0.1:1" in bulk(source, tmp_path / "out", "--address", "127.0.0.1:1", status=1)


def test_an_interrupted_run_says_how_to_go_on(source, tmp_path):
    out = tmp_path / "out"
    with running(source, out) as process:
        found = wait(process, lambda: workers(process))
        assert all("ReadImages->MapBatches(Scorer)" in " ".join(worker.cmdline()) for worker in found)
        process.terminate()
        assert process.wait(60) == 130
    assert "--resume continues" in out.with_suffix(".log").read_text()


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("samples", "1", "samples must be 0, 2..1000 or auto"),
        ("coverage", "2", "coverage must be one of"),
        ("method", "magic", "method input should be 'masks' or 'moments', got magic"),
        ("model", "/nowhere", "/nowhere/card.json: expected a readable file"),
    ],
)
def test_a_wrong_option_is_refused_as_the_service_does(source, tmp_path, option, value, told):
    assert told in bulk(source, tmp_path / "out", f"--{option}", value, status=1)
    assert not (tmp_path / "out").exists()
