"""The state of the coverage, which workers share."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from server import ROOT

from model import load_artifact
from model.coverage import Coverage
from service.inference.predictor import ESTIMATORS
from service.monitoring.coverage import CoverageFile, CoverageMonitor
from service.monitoring.logs import LOGGER
from service.monitoring.prediction_log import UNKNOWN, PredictionLog, Record, classes_key, key

WORKER = """
import dataclasses, sys
from pathlib import Path
from model.coverage import Coverage
from service.monitoring.coverage import CoverageFile
file = CoverageFile(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    with file.changing("model") as states:
        before = states.get("eval", Coverage.start())
        states["eval"] = dataclasses.replace(before, images=before.images + 1)
"""


def add_one(file: CoverageFile, model: str = "model") -> None:
    with file.changing(model) as states:
        before = states.get("eval", Coverage.start())
        states["eval"] = replace(before, images=before.images + 1)


def images(file: CoverageFile, model: str = "model") -> int:
    return file.read(model)["eval"].images


@pytest.fixture(params=["in memory", "in a folder"])
def file(request, tmp_path) -> CoverageFile:
    return CoverageFile(None if request.param == "in memory" else tmp_path / "new" / "folder")


def test_a_change_is_read_and_belongs_to_one_model(file):
    assert file.read("model") == {}
    add_one(file)
    add_one(file)
    assert images(file) == 2
    assert file.read("other") == {}
    add_one(file, "other")
    assert (images(file, "other"), file.read("model")) == (1, {})


def test_nothing_is_kept_of_a_change_that_fails(file):
    add_one(file)

    def fail() -> None:
        with file.changing("model") as states:
            del states["eval"]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert images(file) == 1


def test_two_processes_at_once_lose_no_update(tmp_path):
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), "150"], cwd=ROOT) for _ in range(2)]
    file = CoverageFile(tmp_path)
    for _ in range(50):
        add_one(file)
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert images(file) == images(CoverageFile(tmp_path)) == 350  # the second is a server that starts again


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "model"}', b'{"model": "model", "states": 5}',
     b'{"model": "model", "states": {"eval": {}}}', b'{"model": "model", "states": {"eval": 5}}',
     b'{"model": "model", "states": {"eval": {"images": 1e999}}}'],
)  # fmt: skip
def test_a_damaged_file_is_logged_once_and_starts_anew(tmp_path, content, caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", True)
    file = CoverageFile(tmp_path)
    add_one(file)
    (tmp_path / "coverage.json").write_bytes(content)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        assert file.read("model") == file.read("model") == {}
    assert [record.message for record in caplog.records] == ["damaged state of the coverage: it starts anew"]
    add_one(file)
    assert images(file) == images(CoverageFile(tmp_path)) == 1


def test_a_full_disk_costs_the_state_but_no_feedback(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", True)
    file = CoverageFile(tmp_path)
    add_one(file)
    (tmp_path / "coverage.json").unlink()
    (tmp_path / "coverage.json").mkdir()  # can't be replaced, as on a full disk
    with caplog.at_level(logging.ERROR, LOGGER.name):
        add_one(file)
    assert [record.message for record in caplog.records] == ["state of the coverage not written"]


ARTIFACT = load_artifact()
PROBS_C = [0.9, *[0.1 / 9] * 9]


def add(log: PredictionLog, image: int, estimator: str, *, model: str = ARTIFACT.sha256, samples: int = 0) -> None:
    record = Record(
        time=time.time(), request=0, image=image, model=key(model), classes=classes_key(ARTIFACT.classes),
        predictive_entropy=0, mutual_information=0, confidence=0.9, samples=samples, predicted=0,
        estimator=ESTIMATORS.index(estimator), outcome=UNKNOWN,
    )  # fmt: skip
    log.add(record, PROBS_C)


def counts(monitor: CoverageMonitor) -> dict[str, int]:
    return {name: state.images for name, state, _ in monitor.states()}


@pytest.fixture
def monitor() -> CoverageMonitor:
    return CoverageMonitor(CoverageFile(None), ARTIFACT, adaptive=True)


def test_an_image_counts_once_for_each_estimator(monitor):
    log = PredictionLog(None, 20)

    def tell(image: int) -> int:
        return len(monitor.note_class(log, lambda ring: ring["image"] == image, image, 0))

    for estimator, samples in (("eval", 0), ("masks", 30), ("masks", 100)):
        add(log, 1, estimator, samples=samples)
    assert (tell(1), counts(monitor)) == (3, {"eval": 1, "masks": 1, "moments": 0})
    assert (tell(1), counts(monitor)) == (3, {"eval": 1, "masks": 1, "moments": 0})
    add(log, 1, "masks", samples=100)
    assert (tell(1), counts(monitor)) == (4, {"eval": 1, "masks": 1, "moments": 0})
    add(log, 2, "masks", samples=100)
    assert (tell(2), counts(monitor)) == (1, {"eval": 1, "masks": 2, "moments": 0})


def test_only_the_models_calibrated_predictions_count(monitor):
    log = PredictionLog(None, 20)
    add(log, 1, "eval", model="another")
    add(log, 2, "masks", samples=9)  # fewer than any calibration
    log.add(
        Record(**dict.fromkeys(Record._fields, 0) | {"time": time.time(), "image": 3, "model": key(ARTIFACT.sha256)})
    )
    for image in (1, 2, 3):
        assert len(monitor.note_class(log, lambda ring, image=image: ring["image"] == image, image, 0)) == 1
    assert set(counts(monitor).values()) == {0}


def test_misses_widen_and_hits_narrow_the_sets(monitor):
    log = PredictionLog(None, 20)
    for image, true_class in enumerate((5, 0), start=1):
        add(log, image, "eval")
        before = monitor.adaptation("eval", "lac", 0.9).offset
        monitor.note_class(log, lambda ring, image=image: ring["image"] == image, image, true_class)
        found = monitor.adaptation("eval", "lac", 0.9)
        assert (found.images, found.offset > before) == (image, true_class == 5)
    assert monitor.adaptation("moments", "aps", 0.8) == (0, 0.0)
    assert monitor.adaptation("eval", "unknown", 0.9) is None


def test_a_network_calibrated_again_starts_anew(tmp_path):
    """Weights are the same, thresholds are not."""
    file, log = CoverageFile(tmp_path), PredictionLog(None, 20)
    (first, *rest) = ARTIFACT.calibrations
    again = replace(ARTIFACT, calibrations=(replace(first, temperature=2.0), *rest))
    monitor = CoverageMonitor(file, ARTIFACT, adaptive=True)
    monitor.begin()
    add(log, 1, "eval")
    monitor.note_class(log, lambda ring: ring["image"] == 1, 1, 0)
    CoverageMonitor(CoverageFile(tmp_path), ARTIFACT, adaptive=True).begin()  # a restart
    assert counts(monitor)["eval"] == 1
    CoverageMonitor(file, again, adaptive=True).begin()
    assert counts(monitor)["eval"] == 0
    assert json.loads((tmp_path / "coverage.json").read_bytes())["states"] == {}


def test_without_thresholds_or_calibration_images_nothing_is_tested():
    card = {name: value for name, value in ARTIFACT.card.items() if name != "data"}
    bare = CoverageMonitor(CoverageFile(None), replace(ARTIFACT, card=card), adaptive=False)
    assert np.isnan([evidence for _, _, evidence in bare.states()]).all()
    none = CoverageMonitor(CoverageFile(None), replace(ARTIFACT, calibrations=()), adaptive=False)
    assert list(none.states()) == []
