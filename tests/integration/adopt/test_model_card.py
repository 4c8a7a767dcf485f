"""The model card of an adopted network: what card.json gets, and the page with its plots."""

import io
import re

import numpy as np
import pytest
import rgb
from PIL import Image

from model import load_artifact
from model.artifact import add_to_card
from training.adopt.guarantees import check_guarantees, guarantees_as_json
from training.adopt.labelled_images import LabelledImages
from training.adopt.model_card import write_model_card
from training.calibrate import fit_calibration

COUNT = 60


@pytest.fixture
def parts():
    """Predictions that are right in two of three images, their labels, and a calibration fitted to others like them."""
    rng = np.random.default_rng(7)

    def draw() -> tuple[dict, LabelledImages]:
        labels_N = rng.integers(0, 7, COUNT)
        logits_NC = rng.normal(size=(COUNT, 7)) + 3 * np.eye(7)[labels_N]
        probs_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
        rows = {"probs_BC": probs_NC, "information_B": np.zeros(COUNT)}
        return {("eval", 0): rows, ("masks", 10): rows}, LabelledImages((), labels_N, rgb.CLASSES)

    calibrated, labelled = draw()
    calibration = fit_calibration(**calibrated["masks", 10], labels_B=labelled.labels_N, estimator="masks", samples=10)
    return *draw(), calibration


def pixels(index: int) -> np.ndarray:
    return np.full((20, 24, 3), index, np.uint8)


def test_the_card_has_guarantees_mistakes_and_use(parts, tmp_path):
    folder = rgb.save(tmp_path / "artifact")
    estimates, labelled, calibration = parts
    labels_N = labelled.labels_N
    guarantees = check_guarantees(calibration, estimates["masks", 10]["probs_BC"], labels_N)
    described = guarantees_as_json(guarantees, ["sets of 7"])
    add_to_card(folder, {"guarantees": described, "intended_use": "Sorts <post>."})
    write_model_card(folder, *parts, pixels=pixels)
    artifact = load_artifact(folder)
    assert artifact.card["intended_use"] == "Sorts <post>."
    assert artifact.card["guarantees"]["missing"] == ["sets of 7"]
    assert "sets of coverage 0.9" in [one["guarantee"] for one in artifact.card["guarantees"]["tested"]]
    probs_NC = calibration.probabilities(estimates["masks", 10]["probs_BC"])
    wrong = np.flatnonzero(probs_NC.argmax(axis=1) != labels_N)
    most_confident = wrong[probs_NC[wrong].max(axis=1).argmax()]
    with Image.open(io.BytesIO(artifact.failures)) as row:
        assert row.getpixel((12, 12)) == (most_confident,) * 3
    page = (folder / "model-card" / "index.html").read_text()
    assert "Sorts &lt;post&gt;." in page
    assert "No guarantee for sets of 7." in page
    named = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert named == {"failures.png", "reliability.png", "risk-coverage.png", "set-sizes.png"}
    assert {path.name for path in (folder / "model-card").iterdir()} == named | {"index.html"}
    for name in named:
        with Image.open(folder / "model-card" / name) as picture:
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 1


def test_without_pictures_no_image_of_the_user_is_written(parts, tmp_path):
    folder = rgb.save(tmp_path / "artifact")
    (folder / "model-card").mkdir()
    (folder / "model-card" / "failures.png").write_bytes(b"of an earlier adoption")
    write_model_card(folder, *parts, pixels=None)
    artifact = load_artifact(folder)
    assert artifact.failures is None
    assert artifact.card["failures"]["kinds"][0]["text"].startswith("Confident mistakes: ")
    assert not list(folder.rglob("failures.png"))
    assert "intended_use" not in artifact.card
