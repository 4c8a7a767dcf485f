"""Trained artifacts joined to an ensemble: its own calibration, and that it is served like a single network."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from application import client_of
from files import png
from torch import nn
from typer.testing import CliRunner

import training.join
from model import Artifact, ArtifactError, find_calibration, load_artifact, save_compiled, summarize
from model.artifact import CARD, PRETRAINED, add_to_card
from model.card_page import card_page
from model.input_spec import FASHION_MNIST
from model.network import compile_to_files
from training.calibrate import fit_temperature
from training.convert import app as convert
from training.data import CLASSES, FashionMNIST, Images
from training.estimates import Estimators
from training.feature_novelty import fit_feature_novelty
from training.poses import fit_poses
from training.recalibrate import recalibrate

SEEDS = Path(__file__).parents[2] / "training" / "ensemble"
SPLIT = {"train": 300, "validation": 0, "calibration": 60, "test": 40}


@pytest.fixture(scope="module")
def fashion() -> FashionMNIST:
    """Bright bars, one for each class, among noise."""
    rng = np.random.default_rng(7)

    def images(count: int) -> Images:
        labels = np.arange(count) % 10
        pixels = rng.integers(0, 60, (count, 28, 28))
        for pixels_HW, label in zip(pixels, labels, strict=True):
            pixels_HW[2 * label : 2 * label + 8] += 150
        return Images(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels))

    return FashionMNIST(train=images(420), test=images(40), source=Path())


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[Path]:
    """The included network and two of its other seeds, as if they had been trained with these images."""
    folders = []
    for source in (PRETRAINED, SEEDS / "seed-1", SEEDS / "seed-2"):
        folders.append(shutil.copytree(source, tmp_path_factory.mktemp("members") / source.name))
        add_to_card(folders[-1], {"data": {"split": SPLIT}})
    return folders


def run(fashion: FashionMNIST, *words: object) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.join, "load_fashion_mnist", lambda _folder: fashion)
        done = CliRunner().invoke(training.join.app, list(map(str, words)), env={"COLUMNS": "300"})
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture(scope="module")
def folder(members, fashion, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("joined") / "ensemble"
    code, output = run(fashion, *members, "--out", out)
    assert code == 0, output
    assert "ensemble of 3 networks" in output
    return out


@pytest.fixture(scope="module")
def ensemble(folder) -> Artifact:
    return load_artifact(folder)


def test_its_predictions_are_those_of_its_members(ensemble, members, fashion):
    inputs_B = fashion.test.inputs_B.numpy()
    alone = [load_artifact(member).engine for member in members]
    expected_BC = np.mean([one.predict(inputs_B).astype(np.float64) for one in alone], axis=0)
    assert np.abs(ensemble.engine.predict(inputs_B) - expected_BC).max() < 1e-6
    probs_SBC = ensemble.engine.sample(inputs_B, 30, 4)
    assert np.array_equal(probs_SBC[::3], alone[0].sample(inputs_B, 10, 4))


def test_it_is_calibrated_by_its_own_predictions(ensemble, fashion):
    images = training.recalibrate.split_data(fashion.train, images_per_part=60, validate=False).calibration
    summary = summarize(ensemble.engine.sample(images.inputs_B.numpy(), 100), members=3)
    expected = fit_temperature(summary.mean, images.labels_B.numpy())
    assert find_calibration(ensemble.calibrations, "masks", 100).temperature == pytest.approx(expected, rel=1e-6)
    assert {one.estimator for one in ensemble.calibrations} == {"eval", "masks"}


def test_its_card_names_members_and_cost(ensemble, members):
    assert [one["sha256"] for one in ensemble.card["members"]] == [load_artifact(member).sha256 for member in members]
    assert [one["seed"] for one in ensemble.card["members"]] == [0, 1, 2]
    assert all(0 < ensemble.card["cost"][mode] < 30 for mode in ("eval", "30", "100"))
    page = card_page(ensemble.card, head="", header="", analyses=[])
    assert "3, whose predictions are averaged" in page
    assert "time for one image in times of one network: " in page
    assert f"sha256 {ensemble.card['graph']['sha256']}" in page
    assert "whose predictions are averaged" not in card_page(load_artifact().card, head="", header="", analyses=[])


def test_it_is_another_model_than_its_first_member(ensemble, members, fashion):
    first = load_artifact(members[0])
    assert (ensemble.members, first.members) == (3, 1)
    assert ensemble.sha256 not in {load_artifact(member).sha256 for member in members}
    images_B = fashion.test.inputs_B.numpy()
    assert np.array_equal(ensemble.novelty.score(ensemble.chain, images_B), first.novelty.score(first.chain, images_B))
    assert ensemble.moments is None
    assert ensemble.moments_unavailable == "moments are of one network, and this is an ensemble of 3"
    with pytest.raises(ArtifactError, match="the artifact is an ensemble of 3 networks: take those"):
        _ = ensemble.network
    assert Estimators.of_artifact(ensemble).masks is ensemble.engine


def test_another_number_of_members_in_the_card_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    card = json.loads((copy / CARD).read_text())
    for members, message in ((2, "expected the inputs"), (1, "expected the inputs"), (0, "a size of at least 1")):
        card["graph"]["members"] = members
        (copy / CARD).write_text(json.dumps(card))
        with pytest.raises(ArtifactError, match=message):
            load_artifact(copy)


def test_it_can_be_calibrated_again_but_not_converted(folder, fashion, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    recalibrate(copy, fashion)
    assert (copy / CARD).read_bytes() == (folder / CARD).read_bytes()
    done = CliRunner().invoke(convert, [str(copy)])
    assert done.exit_code == 1


def test_networks_that_have_a_graph_only_are_joined(fashion, tmp_path, monkeypatch):
    """Their novelty score is fitted again, with the ensemble's own probabilities."""
    monkeypatch.setattr(training.recalibrate, "fit_poses", partial(fit_poses, epochs=1))
    folders = [tmp_path / str(seed) for seed in range(2)]
    card = {"classes": list(CLASSES), "recipe": {"name": "cnn"}, "data": {"split": SPLIT | {"calibration": 100}}}
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))
        compiled = compile_to_files(network, fashion.test.inputs_B[0])
        save_compiled(folder, compiled, card, input_spec=FASHION_MNIST)
    calibration = training.recalibrate.split_data(fashion.train, images_per_part=100, validate=False).calibration
    inputs_N = calibration.inputs_B.numpy()
    probs_NC, features_NF = load_artifact(folders[0]).engine.predict_with_features(inputs_N)
    alone = fit_feature_novelty(features_NF, probs_NC, 0)
    add_to_card(folders[0], {}, novelty=alone)
    training.join.join(folders, tmp_path / "out", fashion)
    ensemble = load_artifact(tmp_path / "out")
    assert (ensemble.config, ensemble.input, ensemble.members) == (None, FASHION_MNIST, 2)
    probs_NC = ensemble.engine.predict(inputs_N)
    expected = fit_feature_novelty(features_NF, probs_NC, 0)
    assert expected.scales != alone.scales
    assert ensemble.novelty.scales == expected.scales
    assert ensemble.novelty.poses is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"split": SPLIT | {"calibration": 50}}}, "expected the calibration images of"),
        ({"recipe": {"name": "chapter"}}, "expected the recipe of"),
        ({"recipe": {"name": "adopted"}}, "recipe: expected chapter or default or cnn, got 'adopted'"),
    ],
)
def test_artifacts_of_other_trainings_are_refused(members, fashion, tmp_path, change, message):
    other = shutil.copytree(members[1], tmp_path / "other")
    add_to_card(other, change)
    code, output = run(fashion, members[0], other, "--out", tmp_path / "out")
    assert (code, message in output) == (1, True), output
    assert not (tmp_path / "out").exists()


def test_folders_that_are_in_use_and_single_artifacts_are_refused(members, fashion, tmp_path):
    (tmp_path / "file").write_text("")
    for words, message in (
        ((*members[:2], "--out", tmp_path), "expected a new or an empty folder"),
        ((members[0], "--out", tmp_path / "new"), "an ensemble needs at least two artifacts, got 1"),
        ((*members[:2], tmp_path / "none", "--out", tmp_path / "new"), "expected a readable file"),
    ):
        code, output = run(fashion, *words)
        assert (code, message in output) == (1, True), output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_it_is_served(folder, ensemble, fashion):
    image = fashion.test.images_B[0].numpy()
    with client_of(MCD_MODEL=str(folder)) as client:
        for samples in (0, 2, 10, 100):
            answer = client.post("/predict", content=png(image), params={"samples": samples}).json()
            inputs_1 = fashion.test.inputs_B[:1].numpy()
            if samples:
                expected_C = ensemble.engine.estimate(inputs_1, samples).mean[0]
            else:
                expected_C = ensemble.engine.predict(inputs_1)[0]
            calibration = find_calibration(ensemble.calibrations, "masks" if samples else "eval", samples)
            if calibration is not None:
                expected_C = calibration.probabilities(expected_C[None].astype(np.float64))[0]
            assert np.allclose(answer["probabilities"], expected_C, atol=1e-6)
            assert answer["novelty"]["score"] is not None
        auto = client.post("/predict", content=png(image), params={"samples": "auto"})
        assert auto.json()["samples"] >= 20
        refused = client.post("/predict", content=png(image), params={"method": "moments"})
        assert refused.status_code == 422
        assert "moments are of one network, and this is an ensemble of 3" in refused.json()["detail"]
        assert "whose predictions are averaged" in client.get("/ui/card").text
        assert client.get("/v2/models/mcd").json()["outputs"]
