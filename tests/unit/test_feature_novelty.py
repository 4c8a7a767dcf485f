"""The novelty score of any network, from its features and its entropy."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import rgb
import torch
from bars import images
from pose_views import view
from rich.console import Console
from scipy import stats
from scipy.special import softmax

from model import load_artifact, save_compiled
from model.artifact import ArtifactError
from model.graph import Graph
from model.network import compile_to_files
from model.novelty import FALSE_ALARM_RATES, FeatureNovelty, feature_statistics, novelty_from_parts
from model.poses import PoseView
from model.session import open_session
from service.inference.decision import DecisionOptions, DecisionPolicy
from service.inference.predictor import Predictions
from training.cnn import CNNConfig, build_cnn
from training.feature_novelty import fit_feature_novelty, fit_graph_novelty
from training.poses import fit_poses


def drawn(images: int, seed: int, *, sharpness: float = 20.0, level: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features after a ReLU, and probabilities of five classes."""
    rng = np.random.default_rng(seed)
    features_NF = np.maximum(rng.normal(size=(images, 60)) * level, 0).astype(np.float32)
    logits_NC = rng.normal(size=(images, 5)) * sharpness
    probs_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return features_NF, probs_NC / probs_NC.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def novelty() -> FeatureNovelty:
    return fit_feature_novelty(*drawn(1000, 1), seed=0)


def test_false_alarms_keep_their_rates(novelty):
    scores_N = novelty.score_features(*drawn(20_000, 2))
    assert (scores_N > novelty.thresholds[0.05]).mean() == pytest.approx(0.05, abs=0.025)
    assert (scores_N > novelty.thresholds[0.01]).mean() == pytest.approx(0.01, abs=0.01)
    assert fit_feature_novelty(*drawn(900, 1), seed=0).thresholds[0.001] is None  # they don't show one in a thousand


@pytest.mark.parametrize("change", [{"level": 1.6}, {"level": 0.5}, {"sharpness": 0.5}])
def test_other_features_and_a_larger_entropy_score_higher(novelty, change):
    usual, other = novelty.score_features(*drawn(2000, 3)), novelty.score_features(*drawn(2000, 4, **change))
    assert (other > novelty.thresholds[0.05]).mean() > 0.3
    assert np.median(other) > np.quantile(usual, 0.75)


def test_the_score_is_the_sum_of_both_scaled_parts(novelty):
    features_NF, probs_NC = drawn(50, 5)
    deviation_NS = feature_statistics(features_NF, novelty.scale) - novelty.mean_S
    distance = [row @ novelty.precision_SS @ row for row in deviation_NS]
    parts = [(np.array(distance), "distance"), (stats.entropy(probs_NC, axis=1), "entropy")]
    expected = sum(
        (value - novelty.scales[name][0]) / np.subtract(*novelty.scales[name][::-1]) for value, name in parts
    )
    assert np.allclose(novelty.score_features(features_NF, probs_NC), expected)


def test_statistics_don_t_depend_on_the_unit_of_the_features():
    features_NF, probs_NC = drawn(400, 6)
    one, other = (fit_feature_novelty(factor * features_NF, probs_NC, seed=0) for factor in (1, 1024))
    assert np.allclose(one.score_features(features_NF, probs_NC), other.score_features(1024 * features_NF, probs_NC))


def test_an_image_s_score_is_independent_of_the_others(novelty):
    features_NF, probs_NC = drawn(30, 7)
    together = novelty.score_features(features_NF, probs_NC)
    for index in range(30):
        alone = novelty.score_features(features_NF[index : index + 1], probs_NC[index : index + 1])
        assert np.array_equal(alone, together[index : index + 1])


@pytest.mark.parametrize(
    ("features_NF", "probs_NC"),
    [
        drawn(99, 8),
        (np.zeros((200, 0), np.float32), drawn(200, 8)[1]),
        (np.ones((200, 4), np.float32), drawn(200, 8)[1]),
    ],
    ids=["few images", "no features", "equal features"],
)
def test_it_is_not_fitted_to_what_does_not_suffice(features_NF, probs_NC):
    assert fit_feature_novelty(features_NF, probs_NC, seed=0) is None


def test_card_and_arrays_keep_it(novelty):
    fields = json.loads(json.dumps(novelty.to_json()))
    found = novelty_from_parts(fields, novelty.arrays())
    assert replace(found, mean_S=None, precision_SS=None) == replace(novelty, mean_S=None, precision_SS=None)
    assert np.array_equal(found.score_features(*drawn(20, 9)), novelty.score_features(*drawn(20, 9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts[0].pop("scale"), "bad 'scale'"),
        (lambda parts: parts[0]["scales"].pop("entropy"), "bad 'entropy'"),
        (lambda parts: parts[0]["scales"].update(distance=[2, 1]), "expected increasing scales"),
        (lambda parts: parts[0]["thresholds"].pop("0.05"), "bad '0.05'"),
        (lambda parts: parts[1].pop("mean"), "bad 'mean'"),
        (lambda parts: parts[1].update(mean=np.zeros(4)), "don't fit"),
    ],
)
def test_invalid_parts_are_refused(novelty, change, message):
    parts = novelty.to_json(), novelty.arrays()
    change(parts)
    with pytest.raises(ValueError, match=message):
        novelty_from_parts(*parts)


@pytest.fixture(scope="module")
def posed() -> FeatureNovelty:
    """A score with a view for poses, for the network of `rgb`."""
    images_B = rgb.SPEC.normalize(rgb.noise(60, 200))
    probs_BC, features_BF = rgb.compiled().graph().predict_with_features(images_B)

    def poses(_: np.ndarray) -> tuple[PoseView, np.ndarray]:
        found = view(rgb.SPEC.shape)
        return found, found.score(images_B)

    return fit_feature_novelty(features_BF, probs_BC, seed=0, poses=poses)


def log_odds(poses: PoseView, images_B: np.ndarray) -> np.ndarray:
    (logits_BL,) = open_session("poses", poses.content).run(["logits"], {"image": images_B})
    ordinary_B, *others = softmax(logits_BL.astype(float), axis=1).T
    return np.log(sum(others) / ordinary_B)


def test_the_score_is_the_larger_of_features_and_pose(posed):
    images_B = rgb.SPEC.normalize(rgb.noise(61, 40))
    probs_BC, features_BF = rgb.compiled().graph().predict_with_features(images_B)
    pose_B = 3 * (log_odds(posed.poses, images_B) - 0.5) / 1.5
    plain_B = replace(posed, poses=None).score(features_BF, probs_BC, images_B)
    views = posed.views(features_BF, probs_BC, images_B)
    assert list(views) == ["features", "pose"]
    assert np.array_equal(views["features"], plain_B)
    assert np.allclose(views["pose"], pose_B, atol=1e-4)
    score_B = posed.score(features_BF, probs_BC, images_B)
    assert np.allclose(score_B, np.maximum(plain_B, pose_B), atol=1e-4)
    assert 0 < (score_B == plain_B).sum() < 40


def test_thresholds_are_those_of_the_larger_view(posed):
    images_B = rgb.SPEC.normalize(rgb.noise(60, 200))  # those of the fit
    probs_BC, features_BF = rgb.compiled().graph().predict_with_features(images_B)
    pose_B = posed.poses.score(images_B)
    plain = fit_feature_novelty(features_BF, probs_BC, seed=0)
    assert posed.thresholds[0.05] > max(plain.thresholds[0.05], np.quantile(pose_B, 0.94))
    assert (posed.score(features_BF, probs_BC, images_B) > posed.thresholds[0.05]).mean() <= 0.06
    assert posed.scales == plain.scales


def test_a_score_without_poses_has_one_view(novelty):
    features_NF, probs_NC = drawn(20, 10)
    views = novelty.views(features_NF, probs_NC, np.zeros((20, 1, 4, 4), np.float32))
    assert list(views) == ["features"]
    assert np.array_equal(views["features"], novelty.score_features(features_NF, probs_NC))
    assert "poses" not in novelty.to_json()
    assert novelty.arrays().keys() == {"mean", "precision"}


def test_an_artifact_keeps_poses_and_they_change_its_hash(posed, tmp_path):
    card = {"classes": list(rgb.CLASSES)}
    for name, one in (("with", posed), ("without", replace(posed, poses=None))):
        save_compiled(tmp_path / name, rgb.compiled(), card, input_spec=rgb.SPEC, novelty=one)
    found, plain = (load_artifact(tmp_path / name) for name in ("with", "without"))
    assert found.novelty.poses == posed.poses
    assert plain.novelty.poses is None
    assert found.sha256 != plain.sha256


def test_poses_of_images_of_another_shape_are_refused(posed, tmp_path):
    other = replace(posed, poses=view((3, 24, 20)))
    save_compiled(tmp_path, rgb.compiled(), {"classes": list(rgb.CLASSES)}, input_spec=rgb.SPEC, novelty=other)
    with pytest.raises(ArtifactError, match=r"poses: expected a graph from image \(3, 20, 24\) to logits, got .*24"):
        load_artifact(tmp_path)


def test_a_decision_names_the_view_with_the_highest_score(posed, tmp_path):
    save_compiled(tmp_path, rgb.compiled(), {"classes": list(rgb.CLASSES)}, input_spec=rgb.SPEC, novelty=posed)
    artifact, pixels_B = load_artifact(tmp_path), rgb.noise(62, 40)
    images_B = rgb.SPEC.normalize(pixels_B)
    probs_BC, features_BF = artifact.engine.predict_with_features(images_B)
    predictions = Predictions(
        estimator="eval", classes=rgb.CLASSES, probs_BC=probs_BC, entropy_B=stats.entropy(probs_BC, axis=1), samples=0
    )
    options = DecisionOptions(coverage=0.9, set_method="lac", max_risk=0.05, false_alarm_rate=0.05)
    decided = DecisionPolicy(artifact).decide(predictions, pixels_B, options, seed=0).each()
    is_pose_B = posed.poses.score(images_B) > posed.score_features(features_BF, probs_BC)
    assert [one.novelty.view for one in decided] == ["pose" if is_pose else "features" for is_pose in is_pose_B]
    assert 0 < is_pose_B.sum() < 40
    assert np.allclose([one.novelty.score for one in decided], posed.score(features_BF, probs_BC, images_B), atol=1e-4)


@pytest.fixture(scope="module")
def convolutional() -> tuple[Graph, FeatureNovelty]:
    """An untrained network of the recipe cnn, and its score."""
    torch.manual_seed(8)
    network = build_cnn(CNNConfig(channels=(3, 4, 5), hidden=8)).eval()
    graph = compile_to_files(network, torch.rand(1, 28, 28)).graph()
    poses = partial(fit_poses, console=Console(quiet=True), epochs=20)
    return graph, fit_graph_novelty(graph, images(1000, 82), images(1000, 83), poses=poses)


def test_turned_images_of_a_convolutional_network_are_flagged(convolutional):
    graph, novelty = convolutional

    def views(images_B: np.ndarray) -> dict[str, np.ndarray]:
        probs_BC, features_BF = graph.predict_with_features(images_B)
        return novelty.views(features_BF, probs_BC, images_B)

    fitted, ordinary_B = views(images(1000, 83).inputs_B.numpy()), images(2000, 84).inputs_B.numpy()
    for rate in FALSE_ALARM_RATES:
        assert (np.max([*fitted.values()], axis=0) > novelty.thresholds[rate]).mean() == pytest.approx(rate, abs=0.01)
    threshold = novelty.thresholds[0.05]
    found = views(ordinary_B)
    assert (np.max([*found.values()], axis=0) > threshold).mean() == pytest.approx(0.05, abs=0.04)
    turned = views(np.ascontiguousarray(np.rot90(ordinary_B, axes=(2, 3))))
    assert (turned["pose"] > threshold).mean() > 0.8
