import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from server import ROOT

from service.monitoring.prediction_log import RIGHT, UNKNOWN, WRONG, PredictionLog, Record, is_alive, key

FIELDS = dict.fromkeys(Record._fields, 0) | {"outcome": UNKNOWN}


def add(recent: PredictionLog, **fields: float) -> None:
    recent.add(Record(**FIELDS | {"time": time.time()} | fields))


def everything(recent: PredictionLog) -> np.ndarray:
    return recent.newest(lambda ring: np.ones(len(ring), bool))


def is_image(image: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda ring: ring["image"] == image


@pytest.fixture(params=["in memory", "in a folder"])
def recent(request, tmp_path) -> PredictionLog:
    return PredictionLog(None if request.param == "in memory" else tmp_path / "new" / "folder", 5)


def test_the_newest_are_kept_in_order(recent):
    assert len(everything(recent)) == 0
    for number in range(13):
        add(recent, image=number, estimator=number % 2)
        assert everything(recent)["image"].tolist() == list(range(max(number - 4, 0), number + 1))
    assert recent.newest(lambda ring: ring["estimator"] == 1)["image"].tolist() == [9, 11]
    assert recent.newest(lambda ring: ring["estimator"] == 0, 2)["image"].tolist() == [10, 12]


def test_every_field_is_given_back(recent):
    values = (1.5, 2**64 - 1, 2**63, 7, 8, 0.25, 0.125, 0.5, 1000, 9, 2, WRONG)
    recent.add(Record(*values))
    assert everything(recent).tolist() == [values]


def test_outcomes_are_noted_for_all_matches(recent):
    for predicted in (3, 4, 3, 3):
        add(recent, image=7, predicted=predicted)
    add(recent, image=8, predicted=3)
    assert recent.note_class(is_image(7), 3).tolist() == [RIGHT, WRONG, RIGHT, RIGHT]
    assert everything(recent)["outcome"].tolist() == [RIGHT, WRONG, RIGHT, RIGHT, UNKNOWN]
    assert recent.note_class(is_image(7), 4).tolist() == [WRONG, RIGHT, WRONG, WRONG]
    assert recent.note_class(is_image(9), 4).tolist() == []
    assert recent.note_class(is_image(0), 4).tolist() == []  # where there is no prediction


OTHER = """
import sys, time
from pathlib import Path
from service.monitoring.prediction_log import PredictionLog, Record
recent = PredictionLog(Path(sys.argv[1]), 5)
for image in (int(text) for text in sys.argv[2:]):
    recent.add(Record(time.time(), 0, image, 0, 0, 0, 0, 0, 0, 1, 0))
print("ready", flush=True)
sys.stdin.readline()
"""


def another_process(folder, *images: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder), *map(str, images)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_workers_see_each_others_and_may_tell_of_them(tmp_path):
    recent = PredictionLog(tmp_path, 5)
    add(recent, image=1, predicted=1)
    with another_process(tmp_path, 2, 1) as other:
        assert sorted(everything(recent)["image"].tolist()) == [1, 1, 2]
        assert recent.note_class(is_image(1), 1).tolist() == [RIGHT, RIGHT]
        assert sorted(everything(recent)["outcome"].tolist()) == [UNKNOWN, RIGHT, RIGHT]
        other.communicate("\n")


def test_a_worker_takes_over_what_a_dead_one_left(tmp_path):
    for images in ((1, 2, 3), (4,)):
        with another_process(tmp_path, *images) as other:
            other.kill()
    assert not is_alive(other.pid)
    assert len(list(tmp_path.iterdir())) == 1  # the second took over from the first
    recent = PredictionLog(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 1
    assert everything(recent)["image"].tolist() == [1, 2, 3, 4]
    add(recent, image=5)
    add(recent, image=6)
    assert everything(recent)["image"].tolist() == [2, 3, 4, 5, 6]


def test_a_file_of_another_size_is_replaced(tmp_path):
    with another_process(tmp_path, 1, 2) as other:
        other.kill()
    recent = PredictionLog(tmp_path, 8)
    assert len(everything(recent)) == 0
    add(recent, image=1)
    assert everything(recent)["image"].tolist() == [1]


def test_keys_differ():
    assert len({key(f"{number}") for number in range(100_000)}) == 100_000
    assert all(0 <= key(text) < 2**64 for text in ("", "a", "é" * 128))


PROBABILITIES = """
import sys, time
from pathlib import Path
from service.monitoring.prediction_log import PredictionLog, Record
recent = PredictionLog(Path(sys.argv[1]), 5)
recent.add(Record(time.time(), 0, 7, 0, 0, 0, 0, 0, 0, 1, 0), [0.25, 0.75])
print("ready", flush=True)
sys.stdin.readline()
"""


def kept(recent: PredictionLog, image: int, classes: int) -> list[list[float]]:
    return [probs_C.tolist() for _, probs_C in recent.with_probabilities(is_image(image), classes)]


def test_probabilities_are_kept_with_their_prediction(recent):
    record = Record(**FIELDS | {"time": time.time(), "image": 7})
    assert kept(recent, 7, 3) == []
    recent.add(record, [0.5, 0.25, 0.25])
    recent.add(record)
    recent.add(record._replace(image=8), [0.125, 0.125, 0.75])
    assert kept(recent, 7, 3) == [[0.5, 0.25, 0.25]]
    assert kept(recent, 8, 3) == [[0.125, 0.125, 0.75]]
    assert kept(recent, 7, 2) == []
    recent.add(record, [0.5, 0.5])  # after a reload to a network of two classes
    assert (kept(recent, 7, 2), kept(recent, 8, 3)) == ([[0.5, 0.5]], [])
    for _ in range(5):
        recent.add(record._replace(image=9))
    assert kept(recent, 7, 2) == []


def test_probabilities_are_shared_and_taken_over(tmp_path):
    command = [sys.executable, "-c", PROBABILITIES, str(tmp_path)]
    recent = PredictionLog(tmp_path, 5)
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        assert kept(recent, 7, 2) == [[0.25, 0.75]]
        other.kill()
    for path in tmp_path.glob(f"*-{os.getpid()}"):
        path.unlink()
    assert kept(PredictionLog(tmp_path, 5), 7, 2) == [[0.25, 0.75]]
    assert len(list(tmp_path.iterdir())) == 2
