"""Runs of the studies as users start them: a quick one of all, and small ones that are killed or interrupted."""

import csv
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import missing
from server import ROOT
from typer.testing import CliRunner

import training.studies.__main__ as program
from training.data import DataError
from training.studies import document
from training.studies.catalogue import STUDIES
from training.studies.measurements import QUICK, StudyData, load_study_data
from training.studies.study import TIMINGS, Plan
from training.studies.table import ResultsTable, Row
from training.studies.workers import WorkUnit, missing_units, run_unit, run_units

SECONDS = 1800  # until a program that hangs is a failure
TINY = replace(QUICK, train=200, test=100, passes=2, masks=(1, 2))


@pytest.fixture(scope="module")
def mnist_file(mnist, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mnist") / "digits.npy"
    np.save(path, mnist)
    return path


@pytest.fixture(scope="module")
def data(fashion, mnist_file) -> StudyData:
    try:
        return load_study_data(QUICK, data=None, mnist=mnist_file)
    except DataError as error:
        missing(str(error))


@contextmanager
def started(out: Path, mnist_file: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Run `python -m training.studies`; nothing of it is left afterwards."""
    command = [sys.executable, "-m", "training.studies", *options, "--quick", "--out", out, "--mnist", mnist_file]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: "subprocess.Popen[str]") -> str:
    return process.communicate(timeout=SECONDS)[0]


def wait(process: "subprocess.Popen[str]", until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def results_of(out: Path) -> dict[tuple[str, ...], str]:
    with (out / document.FOLDER / document.RESULTS).open(newline="") as file:
        return {tuple(row[:-1]): row[-1] for row in csv.reader(file) if row[4] not in TIMINGS}


def written(rows: Sequence[Row]) -> dict[tuple[str, ...], str]:
    """What a table holds of rows, but for times."""
    return {
        tuple(str(part) for part in (row.study, row.configuration, row.seed, row.key, row.metric, row.at)): (
            f"{row.value:.8g}"
        )
        for row in rows
        if row.metric not in TIMINGS
    }


def test_a_quick_run_finds_the_directions_that_must_hold(fashion, mnist_file, tmp_path):
    with started(tmp_path, mnist_file, "all") as process:
        said = finish(process)
    assert process.returncode == 0, said
    assert "FAILS" not in said
    page = (tmp_path / document.PAGE).read_text()
    assert re.findall("^## (.*)$", page, re.MULTILINE) == list(STUDIES)
    for picture in re.findall(r"\((studies/[\w-]+\.png)\)", page):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_worker_processes_find_the_numbers_of_one_process(fashion, mnist_file, tmp_path):
    """One epoch of every study on a few images."""
    plan, load = Plan(TINY, 1, 1, quick=True), partial(load_study_data, TINY, data=None, mnist=mnist_file)
    units, data = missing_units(list(STUDIES.values()), plan, ResultsTable(tmp_path / "results.csv")), load()
    found = {unit: written(rows) for unit, rows in run_units(units, load, workers=2)}
    assert found == {unit: written(run_unit(unit, data)) for unit in units}


def test_a_killed_run_resumes_to_the_same_numbers(fashion, mnist_file, data, tmp_path):
    options = ("noise", "--epochs", "1", "--workers", "1")
    table = tmp_path / document.FOLDER / document.RESULTS
    with started(tmp_path, mnist_file, *options) as first:
        wait(first, table.exists)
        workers = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGKILL)
    assert workers
    assert not psutil.wait_procs(workers, timeout=SECONDS)[1]
    kept = results_of(tmp_path)
    with started(tmp_path, mnist_file, *options) as second:
        said = finish(second)
    found = results_of(tmp_path)
    assert kept.items() < found.items(), said
    plan, variants = Plan(QUICK, 2, 1, quick=True), STUDIES["noise"].variants
    for seed, some in enumerate((variants[:5], variants[5:])):
        assert written(run_unit(WorkUnit("noise", some, seed, plan), data)).items() < found.items()


def test_a_direction_that_fails_ends_with_status_1(fashion, mnist_file, data, tmp_path, monkeypatch):
    """After one epoch no network has overfitted."""

    def in_process(
        units: Sequence[WorkUnit], load: Callable[[], StudyData], *, workers: int
    ) -> Iterator[tuple[WorkUnit, list[Row]]]:
        for unit in units:
            yield unit, run_unit(unit, data)

    monkeypatch.setattr(program, "run_units", in_process)
    options = ["epochs", "--quick", "--epochs", "1", "--out", str(tmp_path), "--mnist", str(mnist_file)]
    done = CliRunner().invoke(program.app, options, env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert re.search(r"without dropout, test loss has risen.*0\.0000.*FAILS", done.output)


def test_an_interrupted_run_leaves_nothing_behind(fashion, mnist_file, tmp_path):
    with started(tmp_path, mnist_file, "epochs", "--epochs", "1000000") as process:
        # Two workers and multiprocessing's tracker. To import what they need takes each 3 s; so they are at work.
        wait(process, lambda: sum(map(_seconds, psutil.Process(process.pid).children())) > 10)
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        said = finish(process)
    assert process.returncode == 130
    assert "nothing was finished; run the same command to continue" in said
    assert not psutil.wait_procs(workers, timeout=SECONDS)[1]
    assert not list(tmp_path.iterdir())


def _seconds(process: psutil.Process) -> float:
    try:
        return process.cpu_times().user
    except psutil.NoSuchProcess:
        return 0
