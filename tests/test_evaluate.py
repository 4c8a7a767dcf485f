import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import training.calibrate
import training.evaluate
from model import MLPConfig, MomentPropagation, build_mlp, keep_masks, load_artifact, save_artifact
from training.data import CLASSES, FashionMNIST, Images
from training.evaluate import app, evaluate, print_metrics
from training.metrics import scores

ROOT = Path(__file__).parent.parent
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
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    torch.manual_seed(0)
    save_artifact(folder, build_mlp(CONFIG), CONFIG, {"classes": list(CLASSES)})
    return folder


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def entropy(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(probs)).sum(axis=-1)


def test_figures_equal_those_of_a_second_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.calibrate, "_IMAGES_AT_ONCE", 5)  # 12 images: two full parts and a rest
    torch.manual_seed(5)
    images = Images(torch.randint(0, 256, (12, 4, 3), dtype=torch.uint8), torch.randint(0, 5, (12,)))
    hidden, logits = nn.Linear(12, 6), nn.Linear(6, 5)
    nn.init.normal_(hidden.weight)
    nn.init.normal_(logits.weight)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), hidden, nn.ReLU(), nn.Dropout(0.3), logits)

    found = evaluate(network, images, samples=7, seed=5)

    inputs_BP = images.images_B.double().numpy().reshape(12, 12) / 255
    (W1, b1), (W2, b2) = (
        (layer.weight.detach().double().numpy(), layer.bias.detach().numpy()) for layer in (hidden, logits)
    )
    keep1_SP = keep_masks((12,), 0.2, samples=7, seed=5, layer=0)
    keep2_SH = keep_masks((6,), 0.3, samples=7, seed=5, layer=1)
    eval_BC = softmax(np.maximum(inputs_BP @ W1.T + b1, 0) @ W2.T + b2)
    probs_SBC = np.array(
        [
            softmax((np.maximum((inputs_BP * keep1_P / 0.8) @ W1.T + b1, 0) * keep2_H / 0.7) @ W2.T + b2)
            for keep1_P, keep2_H in zip(keep1_SP, keep2_SH, strict=True)
        ]
    )
    mean_BC = probs_SBC.mean(axis=0)
    moments = MomentPropagation(network).predict(images.inputs_B)
    labels_B = images.labels_B.numpy()
    expected = {
        mode: {
            "accuracy": np.mean(probs_BC.argmax(axis=1) == labels_B),
            "nll": -np.mean(np.log(probs_BC[np.arange(12), labels_B])),
            "brier": sum(
                (p - (c == label)) ** 2
                for row, label in zip(probs_BC, labels_B, strict=True)
                for c, p in enumerate(row)
            )
            / 12,
            **{
                name: value
                for name, value in scores(probs_BC, labels_B).items()
                if name not in {"accuracy", "nll", "brier"}  # the others have tests of their own
            },
            "entropy": np.mean(entropy(probs_BC)),
        }
        for mode, probs_BC in (("eval", eval_BC), ("mc", mean_BC), ("moments", moments.mean.numpy()))
    }
    expected["moments"]["mutual_information"] = moments.mutual_information.mean().item()
    bias_B = (probs_SBC.var(axis=0, ddof=1) / 7 / mean_BC).sum(axis=-1) / 2
    expected["mc"] |= {
        "mutual_information": np.mean(entropy(mean_BC) - entropy(probs_SBC).mean(axis=0) + bias_B),
        "samples": 7,
        "seed": 5,
    }
    assert found.keys() == expected.keys()
    for mode, row in expected.items():
        assert found[mode] == pytest.approx(row, rel=1e-5)
    assert 0 < expected["eval"]["accuracy"] < 1
    assert expected["eval"] != expected["mc"]


def test_the_same_seed_gives_the_same_figures_and_another_seed_others() -> None:
    torch.manual_seed(1)
    images = Images(torch.randint(0, 256, (9, 28, 28), dtype=torch.uint8), torch.arange(9))
    network = build_mlp(CONFIG)
    first, again, other = (evaluate(network, images, samples=4, seed=seed) for seed in (8, 8, 9))
    assert first == again
    assert first["eval"] == other["eval"]
    assert first["mc"]["nll"] != other["mc"]["nll"]


def test_evaluation_leaves_mode_and_global_generator_alone() -> None:
    images = Images(torch.zeros(3, 28, 28, dtype=torch.uint8), torch.arange(3))
    network = build_mlp(CONFIG).train()
    before = torch.random.get_rng_state()
    evaluate(network, images, samples=4, seed=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in network.modules())


def test_the_table_shows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(
        {
            "eval": {"accuracy": 0.90123, "nll": 0.28123, "brier": 0.13123, "ece": 0.01123, "entropy": 0.23123},
            "mc": {
                "samples": 37, "seed": 21, "accuracy": 0.91234, "nll": 0.27234, "brier": 0.12234, "ece": 0.02234,
                "entropy": 0.30234, "mutual_information": 0.04234,
                "calibrated": {"accuracy": 0.91234, "nll": 0.25234, "brier": 0.11234, "ece": 0.00234},
            },
        },
        "9 test images",
    )  # fmt: skip
    printed = capsys.readouterr().out
    rows = {
        mode: re.findall(r"\d\.\d+", line)
        for line in printed.splitlines()
        for mode in re.findall("eval|mc, calibrated|mc ", line)
    }
    assert rows["eval"] == ["0.9012", "0.2812", "0.1312", "0.0112", "0.2312"]
    assert rows["mc "] == ["0.9123", "0.2723", "0.1223", "0.0223", "0.3023", "0.0423"]
    assert rows["mc, calibrated"] == ["0.9123", "0.2523", "0.1123", "0.0023"]
    assert "9 test images" in printed
    assert "37 masks, seed 21" in printed


def test_the_program_prints_a_table_and_writes_the_figures_as_json(
    fashion: FashionMNIST, artifact: Path, tmp_path: Path
) -> None:
    out, boots, report = tmp_path / "metrics.json", tmp_path / "boots.npy", tmp_path / "report"
    np.save(boots, fashion.test[fashion.test.labels_B == 9].images_B)
    files = ["--out", out, "--report", report, "--ood", f"boots={boots}"]
    done = cli(artifact, "--data", fashion.source, "--samples", "3", "--seed", "11", *files)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(out.read_text())
    assert (metrics["mc"]["samples"], metrics["mc"]["seed"]) == (3, 11)
    check_report(report, metrics)
    strange = metrics.pop("ood")
    assert strange.keys() == {"noise", "permuted pixels", "inverted", "blank", "boots"}
    assert f"{strange['boots']['mutual information, mc']['auroc']:.3f}" in done.stdout
    for row in metrics.values():
        for name in ("accuracy", "nll", "entropy"):
            assert f"{row[name]:.4f}" in done.stdout
    torch.manual_seed(0)
    with torch.no_grad():
        logits_BC = build_mlp(CONFIG).eval()(fashion.test.inputs_B)
    right_B = logits_BC.argmax(dim=1) == fashion.test.labels_B
    assert metrics["eval"]["accuracy"] == pytest.approx(right_B.double().mean().item(), abs=1e-4)
    loss = nn.functional.cross_entropy(logits_BC, fashion.test.labels_B).item()
    assert metrics["eval"]["nll"] == pytest.approx(loss, rel=1e-4)


def check_report(folder: Path, metrics: dict) -> None:
    """Every picture of the page is there and drawn, every file of the folder is of the page."""
    page = (folder / "index.html").read_text()
    pictures = re.findall(r'<img src="([^"]+)" alt="[^"]+">', page)
    assert {path.name for path in folder.iterdir()} == {"index.html", *pictures}
    assert {"reliability.png", "risk-coverage.png", "least-sure.png", "entropy-mc.png"} <= set(pictures)
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 20
    for mode in ("eval", "mc", "moments"):
        assert f"{metrics[mode]['aurc']:.4f}" in page
    assert f"{metrics['ood']['noise']['entropy, mc']['auroc']:.4f}" in page
    assert "not calibrated" in page
    assert "<script" not in page


def test_a_calibrated_models_report_tells_what_it_promises(
    fashion: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_B = torch.arange(300)
    few = FashionMNIST(train=fashion.train[index_B], test=fashion.test[index_B], source=fashion.source)
    monkeypatch.setattr(training.evaluate, "load_fashion_mnist", lambda _folder: few)
    out = tmp_path / "metrics.json"
    done = CliRunner().invoke(app, ["--samples", "10", "--report", str(tmp_path / "report"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    page, metrics = (tmp_path / "report" / "index.html").read_text(), json.loads(out.read_text())
    assert load_artifact().sha256 in page
    for found in metrics["mc"]["calibrated"]["prediction_sets"]["aps"].values():
        assert f"{found['covered']:.4f}</td><td>{found['size']:.4f}" in page
    for found in metrics["eval"]["calibrated"]["max_risk"].values():
        assert f"{found['error']:.4f}</td><td>{found['answered']:.4f}" in page
    assert f"{metrics['ood']['inverted']['novelty']['flagged']:.4f}" in page
    assert (tmp_path / "report" / "novelty.png").exists()


def test_the_embedded_models_card_tells_what_is_measured_again(fashion: FashionMNIST) -> None:
    artifact = load_artifact()
    found = evaluate(artifact.network, fashion.test, samples=100, seed=0, calibrations=artifact.calibrations)
    assert_nearly(found, artifact.card["metrics"]["test"])


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
    done = cli(artifact, "--data", tmp_path)
    assert done.returncode == 1
    [line] = (done.stdout + done.stderr).splitlines()
    assert line.startswith(f"error: Fashion-MNIST was not found in {tmp_path} ")
    assert "dataset-fashion-mnist" in line


def test_a_flipped_byte_in_the_weights_is_an_error_that_tells_so(artifact: Path, tmp_path: Path) -> None:
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
def test_brackets_in_a_path_are_no_markup(folder: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tmp_path / folder)])
    assert done.exit_code == 1
    assert f"{folder}/card.json" in done.output.replace("\n", "")
