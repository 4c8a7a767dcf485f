import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.optimize import minimize_scalar
from torch import nn
from typer.testing import CliRunner

import training.evaluate
from model import MLPConfig, build_mlp, load_artifact, save_artifact
from model.artifact import PRETRAINED
from training.data import CLASSES, FashionMNIST, Images, split_data
from training.estimates import Estimators, estimate
from training.evaluate import app
from training.failures import fashion_failures, side_by_side
from training.measure import measure, measure_class_coverage, ood_scores
from training.metrics import detection_metrics
from training.shifts import CORRUPTIONS
from training.vision import torchvision

ROOT = Path(__file__).parents[2]
MEMBERS = sorted((ROOT / "training" / "ensemble").iterdir())
CONFIG = MLPConfig(hidden=(8, 6), dropout=(0.1, 0.4))


def cli(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would, writing to a pipe."""
    terminal = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS"}
    return subprocess.run(
        [sys.executable, "-m", "training.evaluate", *map(str, arguments)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in terminal} | environ,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    torch.manual_seed(0)
    save_artifact(folder, build_mlp(CONFIG), CONFIG, {"classes": list(CLASSES)})
    return folder


@pytest.fixture
def few(fashion: FashionMNIST, monkeypatch: pytest.MonkeyPatch) -> FashionMNIST:
    """The program sees the first 300 test images only: it measures sixty variations of them."""
    part = FashionMNIST(train=fashion.train, test=fashion.test[:300], source=fashion.source)
    monkeypatch.setattr(training.evaluate, "load_fashion_mnist", lambda _folder: part)
    return part


def evaluated(*arguments: object) -> tuple[str, dict]:
    """What the program printed, and its figures."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        done = CliRunner().invoke(app, [*map(str, arguments), "--out", str(out)])
        assert done.exit_code == 0, done.output
        return done.output, json.loads(out.read_text())


def test_evaluation_measures_all_estimators_and_compared_models(
    few: FashionMNIST, artifact: Path, tmp_path: Path
) -> None:
    boots, report = tmp_path / "boots.npy", tmp_path / "report"
    np.save(boots, few.test[few.test.labels_B == 9].images_B)
    beside = ["--beside", f"raw={artifact}", "--beside", f"two={PRETRAINED}", "--beside", f"two={MEMBERS[0]}"]
    printed, figures = evaluated("--ood", f"boots={boots}", "--report", report, *beside)
    assert json.loads((report / "figures.json").read_text()) == figures
    assert {"eval", "mc", "moments", "masks", "classes", "beside", "ood", "decisions", "rotation", "corruptions"} == (
        figures.keys()
    )
    assert list(figures["masks"]) == ["2", "5", "10", "30", "100", "300"]
    assert ["calibrated" in row for row in figures["masks"].values()] == [False, False, True, True, True, True]
    assert figures["masks"]["100"].items() <= figures["mc"].items()
    assert list(map(int, figures["rotation"])) == list(range(0, 181, 15))
    assert {name: len(rows) for name, rows in figures["corruptions"].items()} == dict.fromkeys(CORRUPTIONS, 5)
    unturned = figures["rotation"]["0"]
    for mode in ("eval", "mc", "moments"):
        for name in ("accuracy", "nll", "ece"):
            assert unturned[mode][name] == pytest.approx(figures[mode][name], rel=1e-6)
    assert unturned["decision"] == figures["decisions"]["test images"]
    assert figures["rotation"]["90"]["mc"]["accuracy"] < 0.5 < unturned["mc"]["accuracy"]
    assert figures["ood"].keys() == {"noise", "permuted pixels", "inverted", "blank", "boots"}
    assert figures["decisions"]["inverted"]["answered"] == 0
    assert "calibrated" not in figures["beside"]["raw"]["mc"]
    check_ensemble(few, figures["beside"]["two"])
    check_report(report, printed, figures)
    assert f"{figures['eval']['calibrated']['prediction_sets']['aps']['0.95']['covered']:.4f}" in printed


def check_ensemble(few: FashionMNIST, found: dict) -> None:
    """Its eval mode is the mean of two networks."""
    with torch.no_grad():
        probs_MBC = [load_artifact(path).network(few.test.inputs_B).softmax(dim=1) for path in (PRETRAINED, MEMBERS[0])]
    loss = nn.functional.nll_loss(torch.stack(probs_MBC).mean(dim=0).log(), few.test.labels_B)
    assert found["eval"]["nll"] == pytest.approx(loss.item(), rel=1e-4)
    assert found["eval"]["mutual_information"] > 0
    assert found["mc"]["calibrated"].keys() == found["eval"]["calibrated"].keys()
    each = load_artifact(PRETRAINED).card["data"]["split"]["calibration"]
    images = split_data(few.train, images_per_part=each, validate=False).calibration
    with torch.no_grad():
        networks = [load_artifact(path).network for path in (PRETRAINED, MEMBERS[0])]
        logs_BC = torch.stack([network(images.inputs_B).softmax(dim=1) for network in networks]).mean(dim=0).log()

    def loss_at(temperature: float, logs_BC: torch.Tensor, labels_B: torch.Tensor) -> float:
        return nn.functional.cross_entropy(logs_BC / temperature, labels_B).item()

    best = minimize_scalar(loss_at, bounds=(0.5, 2), args=(logs_BC, images.labels_B), method="bounded").x
    logs_BC = torch.stack(probs_MBC).mean(dim=0).log()
    assert found["eval"]["calibrated"]["nll"] == pytest.approx(loss_at(best, logs_BC, few.test.labels_B), rel=1e-3)


def check_report(folder: Path, printed: str, figures: dict) -> None:
    """Every picture of the page is there and drawn, every file of the folder is of the page, every figure in both."""
    page = (folder / "index.html").read_text()
    pictures = {"".join(name) for name in re.findall(r'<img src="([^"]+)" alt="[^"]+">|<image href="([^"]+)"', page)}
    assert {path.name for path in folder.iterdir()} == {"index.html", "figures.json", *pictures}
    drawn = {"reliability", "risk-coverage", "least-sure", "entropy-mc", "samples", "rotation", "rotation-one"}
    assert {f"{name}.png" for name in drawn | {"corruptions", "classes"}} <= pictures
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 20
    for text in (page, printed):
        for mode in ("eval", "mc", "moments"):
            assert f"{figures[mode]['aurc']:.4f}" in text
        assert f"{figures['ood']['noise']['entropy, mc']['auroc']:.4f}" in text
        assert f"{figures['corruptions']['shear']['4']['mc']['accuracy']:.4f}" in text
    assert "<script" not in page
    assert ("not calibrated" in page) != ("calibrated" in figures["mc"])


def test_uncalibrated_model_has_no_calibration_tables(few: FashionMNIST, artifact: Path, tmp_path: Path) -> None:
    printed, figures = evaluated(artifact, "--samples", 3, "--seed", 11, "--report", tmp_path / "report")
    assert (figures["mc"]["samples"], figures["mc"]["seed"]) == (3, 11)
    assert "3" in figures["masks"]
    assert "decisions" not in figures
    assert "decision" not in figures["rotation"]["0"]
    check_report(tmp_path / "report", printed, figures)
    torch.manual_seed(0)
    with torch.no_grad():
        logits_BC = build_mlp(CONFIG).eval()(few.test.inputs_B)
    right_B = logits_BC.argmax(dim=1) == few.test.labels_B
    assert figures["eval"]["accuracy"] == pytest.approx(right_B.double().mean().item(), abs=1e-4)
    loss = nn.functional.cross_entropy(logits_BC, few.test.labels_B).item()
    assert figures["eval"]["nll"] == pytest.approx(loss, rel=1e-4)


def test_failed_download_is_omitted(few: FashionMNIST, artifact: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    printed, figures = evaluated(artifact, "--ood", "MNIST")
    assert "omitted: MNIST: can't be downloaded" in printed
    assert "MNIST" not in figures["ood"]


def test_mnist_is_detected(fashion: FashionMNIST, mnist: np.ndarray) -> None:
    """The figure that the novelty score was not chosen by."""
    artifact = load_artifact()
    digits = Images(torch.from_numpy(mnist.copy()), torch.zeros(len(mnist)).long())
    found = []
    for images in (fashion.test, digits):
        estimates = estimate(
            Estimators.of_artifact(artifact), images, samples=(10,), seed=0, console=Console(quiet=True)
        )
        found.append(ood_scores(artifact, images, estimates, samples=10)["novelty"])
    assert detection_metrics(*found)["auroc"] >= 0.985


@pytest.mark.parametrize("option", ["--ood", "--beside"])
def test_a_name_without_a_path_is_refused(few: FashionMNIST, artifact: Path, option: str) -> None:
    done = CliRunner().invoke(app, [str(artifact), option, "digits"])
    assert done.exit_code == 1
    assert f"error: {option}: expected NAME=PATH, got digits" in done.output


def test_card_of_embedded_model_equals_a_new_measurement(fashion: FashionMNIST) -> None:
    artifact = load_artifact()
    estimates = estimate(
        Estimators.of_artifact(artifact), fashion.test, samples=(100,), seed=0, console=Console(quiet=True)
    )
    labels_B = fashion.test.labels_B.numpy()
    found = measure(estimates, labels_B, samples=100, seed=0, calibrations=artifact.calibrations)
    assert_nearly(found, artifact.card["metrics"]["test"])
    by_class = measure_class_coverage(
        estimates, labels_B, samples=100, classes=artifact.classes, calibrations=artifact.calibrations
    )
    assert_nearly(by_class, artifact.card["metrics"]["classes"])
    failures = fashion_failures(artifact, fashion.test, estimates, console=Console(quiet=True))
    assert [
        {"text": one.text, "images": [caption for _, caption in one.pictures]} for one in failures
    ] == artifact.card["failures"]["kinds"]
    drawn, told = side_by_side([pixels for one in failures for pixels, _ in one.pictures]), artifact.failures
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(png))) for png in (drawn, told)))


def test_the_published_model_card_is_of_the_embedded_model() -> None:
    """Of these weights, with these figures: figures.json was written by an evaluation, as the card was."""
    published, card = ROOT / "docs" / "model-card", load_artifact().card
    figures = json.loads((published / "figures.json").read_text())
    assert load_artifact().sha256 in (published / "index.html").read_text()
    assert_nearly({mode: figures[mode] for mode in ("eval", "mc", "moments")}, card["metrics"]["test"])
    for name, row in card["metrics"]["classes"].items():
        for method, found in row["prediction_sets"].items():
            assert_nearly(figures["classes"][name]["prediction_sets"][method]["0.9"], found["0.9"])
    assert {"chapter", "ensemble"} <= figures["beside"].keys()
    assert "MNIST" in figures["ood"]


def assert_nearly(found: object, told: object) -> None:
    """Equal to four digits."""
    if isinstance(told, dict):
        assert isinstance(found, dict)
        assert found.keys() == told.keys()
        for name, value in told.items():
            assert_nearly(found[name], value)
    else:
        assert found == pytest.approx(told, abs=1e-4)


def test_a_missing_artifact_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    missing = tmp_path / "a-folder-with-a-name-that-would-not-fit-into-a-narrow-terminal" / "artifact"
    done = cli(missing)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).splitlines() == [
        f"error: {missing / 'card.json'}: expected a readable file, got No such file or directory"
    ]


def test_missing_data_is_one_line_and_exit_code_1(artifact: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(artifact), "--data", str(tmp_path)])
    assert done.exit_code == 1
    [line] = done.output.splitlines()
    assert line.startswith(f"error: Fashion-MNIST was not found in {tmp_path} ")
    assert "dataset-fashion-mnist" in line


def test_flipped_byte_in_the_weights_is_reported(artifact: Path, tmp_path: Path) -> None:
    weights = bytearray((artifact / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(weights)
    (tmp_path / "card.json").write_bytes((artifact / "card.json").read_bytes())
    done = CliRunner().invoke(app, [str(tmp_path)])
    assert done.exit_code == 1
    assert "weights.safetensors: expected sha256" in done.output.replace("\n", "")


def test_one_mask_is_refused(artifact: Path) -> None:
    done = CliRunner().invoke(app, [str(artifact), "--samples", "1"])
    assert done.exit_code == 2
    assert "--samples" in done.output


@pytest.mark.parametrize("folder", ["[old]", "[/old]"])
def test_brackets_in_a_path_are_printed_literally(folder: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tmp_path / folder)])
    assert done.exit_code == 1
    assert f"{folder}/card.json" in done.output.replace("\n", "")
