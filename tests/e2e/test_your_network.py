"""docs/your-network.md as a reader follows it; and what `mcd adopt` refuses."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from server import ROOT, serve

from model import load_artifact
from training.adopt.labelled_images import find_images
from training.calibrate import fit_temperature

GUIDE = (ROOT / "docs" / "your-network.md").read_text()
BIN = Path(sys.executable).parent


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def run(folder: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"}
    done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a reader, up to the trained network."""
    made = tmp_path_factory.mktemp("guide")
    network, training = blocks("py")
    (made / "digits.py").write_text(network)
    (made / "train.py").write_text(training)
    run(made, sys.executable, "train.py")
    return made


@pytest.fixture(scope="module")
def adopted(folder) -> str:
    """What the command prints."""
    return run(folder, *shlex.split(blocks("sh")[0])).stdout


def test_the_network_is_calibrated_and_its_guarantees_hold(folder, adopted):
    artifact = load_artifact(folder / "adopted")
    test = artifact.card["metrics"]["test"]
    assert test["mc"]["accuracy"] > 0.93
    assert test["mc"]["calibrated"]["nll"] < 0.25
    assert [site.p for site in artifact.spec.sites] == [0.3, 0.5]
    assert artifact.card["data"]["split"] == {"calibration": 448, "test": 449, "fraction": 0.5}
    covered = test["mc"]["calibrated"]["prediction_sets"]["lac"]["0.9"]["covered"]
    assert 0.85 < covered < 0.95
    assert "at most 5% of the answers wrong" in adopted
    assert "no guarantee for at most 1% of the answers wrong" in adopted
    assert artifact.card["command"].startswith("mcd adopt digits:network --weights weights.pt ")
    assert artifact.moments is not None
    assert test["moments"]["accuracy"] == pytest.approx(test["mc"]["accuracy"], abs=0.02)
    assert artifact.novelty.thresholds[0.05] is not None
    assert "novelty: " in adopted
    detection = artifact.card["metrics"]["ood"]
    assert {name: row["images"] for name, row in detection.items()} == {"noise": 100, "turned": 897}
    assert min(row["auroc"] for row in detection.values()) > 0.6
    assert all(f"{row['auroc']:.3f}" in adopted for row in detection.values())
    assert artifact.failures is not None
    assert (
        f"{100 * test['mc']['calibrated']['accuracy']:.1f}&nbsp;%"
        in (folder / "adopted" / "model-card" / "index.html").read_text()
    )
    assert not (folder / "adopted" / "progress").exists()


def test_calibration_and_test_images_are_different_halves(folder, adopted):
    """Temperatures fitted again to one half, and accuracy counted on the other, are those of the card."""
    artifact = load_artifact(folder / "adopted")
    calibrating, testing = find_images(folder / "images").split(0, 0.5)
    assert not set(calibrating.images) & set(testing.images)
    assert [example.name for example in artifact.examples] == list(artifact.classes)
    tested = {(one.path.parent.name, np.asarray(Image.open(one.path)).tobytes()) for one in testing.images}
    shown = {(one.name, np.asarray(Image.open(io.BytesIO(one.content))).tobytes()) for one in artifact.examples}
    assert shown <= tested

    def predicted(images) -> np.ndarray:
        pixels_B = np.stack([np.asarray(Image.open(image.path), np.float32) for image in images])
        return artifact.engine.predict(pixels_B[:, None] / 255).astype(np.float64)

    (fitted,) = [one for one in artifact.calibrations if one.estimator == "eval"]
    temperature = fit_temperature(predicted(calibrating.images), calibrating.labels_N)
    assert fitted.temperature == pytest.approx(temperature, rel=1e-3)
    accuracy = (predicted(testing.images).argmax(axis=1) == testing.labels_N).mean()
    assert artifact.card["metrics"]["test"]["eval"]["accuracy"] == pytest.approx(accuracy)


def test_the_artifact_is_served(folder, adopted, tmp_path):
    images = sorted((folder / "images").glob("*/*.png"))[::20]
    with (
        serve(tmp_path / "home", MCD_MODEL=str(folder / "adopted")) as server,
        httpx.Client(base_url=server.url) as one,
    ):
        answers = []
        for path in images:
            response = one.post("/predict", content=path.read_bytes(), params={"samples": 100})
            assert response.status_code == 200, response.text
            answers.append(response.json())
        files = [("images", path.read_bytes()) for path in images]
        assert one.post("/predict_batch", files=files, params={"samples": 100}).json()["results"] == answers
        propagated = one.post("/predict", content=images[0].read_bytes(), params={"method": "moments"}).json()
    assert propagated["calibration"] == {"estimator": "moments", "samples": 0}
    right = [answer["label"] == path.parent.name for answer, path in zip(answers, images, strict=True)]
    assert np.mean(right) > 0.85
    for answer in answers:
        assert answer["calibrated"]
        assert answer["prediction_set"] is not None
        assert answer["novelty"]["threshold"] is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--weights", "absent.pt"], "absent.pt: expected a readable file, got No such file or directory"),
        (["--classes", "names.txt"], "images of the classes 2, 3, 4, 5, 6 and 3 more, but the classes are 0, 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder, adopted, tmp_path, change, message):
    (folder / "names.txt").write_text("0\n1\n")
    command = [*shlex.split(blocks("sh")[0]), "--out", str(tmp_path / "out"), *change]
    done = run(folder, *command, status=1)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out" / "card.json").exists()
