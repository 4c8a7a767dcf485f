"""The view of the novelty score for poses, and the images that it learns from."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from bars import images
from pose_views import view
from rich.console import Console
from scipy.special import softmax
from torch import nn

from model import MLPConfig, build_mlp, load_artifact
from model.artifact import ArtifactError, save_artifact
from model.chain import Array
from model.network.chain import LiveChain
from model.novelty import FALSE_ALARM_RATES, Novelty
from model.poses import PoseView
from model.session import open_session
from training.data import as_inputs
from training.novelty import fit_novelty
from training.poses import ORDINARY, Transforms, fit_poses

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def poses() -> PoseView:
    return view()


@pytest.fixture(scope="module")
def images_B() -> Array:
    return np.random.default_rng(6).random((300, 1, 28, 28), np.float32)


def test_the_score_is_scaled_log_odds_of_all_transformations(poses, images_B):
    logits_BL = open_session("poses", poses.content).run(["logits"], {"image": images_B})[0]
    ordinary_B, *others = softmax(logits_BL.astype(float), axis=1).T
    log_odds_B = np.log(sum(others) / ordinary_B)
    assert np.allclose(poses.log_odds(images_B), log_odds_B, atol=1e-5)
    assert np.allclose(poses.score(images_B), 3 * (log_odds_B - 0.5) / 1.5, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 17, 256, 257, 300])
def test_a_score_does_not_depend_on_its_neighbours(poses, images_B, count):
    alone_B = np.array([poses.score(images_B[b : b + 1])[0] for b in range(count)])
    assert np.array_equal(poses.score(images_B[:count]), alone_B)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301 - our own
def test_a_copy_opens_its_own_session(poses, images_B, copied):
    expected = poses.score(images_B[:3])
    assert np.array_equal(copied(poses).score(images_B[:3]), expected)


def test_parts_make_the_same_view(poses):
    assert PoseView.from_parts(poses.to_json(), poses.arrays()) == poses


@pytest.mark.parametrize(
    ("scale", "message"), [([1, 1, 1], "rises from its median"), ([0, 1, 0], "rises"), ([0, 1], "not enough values")]
)
def test_from_parts_refuses_an_invalid_scale(poses, scale, message):
    with pytest.raises(ValueError, match=message):
        PoseView.from_parts(poses.to_json() | {"scale": scale}, poses.arrays())


CONFIG = MLPConfig(hidden=(8, 6), dropout=(0.1, 0.4), classes=4)


@pytest.fixture(scope="module")
def fitted() -> tuple[nn.Sequential, Novelty]:
    torch.manual_seed(7)
    network = build_mlp(CONFIG).requires_grad_(requires_grad=False)

    def fit(*arguments) -> PoseView:
        return fit_poses(*arguments, console=QUIET, epochs=26)

    return network, fit_novelty(network, images(1000, 72), images(1000, 73), poses=fit)


def test_an_artifact_keeps_the_view(fitted, tmp_path):
    network, novelty = fitted
    save_artifact(tmp_path, network, CONFIG, {"classes": [*"abcd"]}, novelty=novelty)
    artifact = load_artifact(tmp_path)
    assert artifact.novelty.poses == novelty.poses
    assert artifact.card["novelty"]["poses"]["ordinary"] == ORDINARY


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (view((1, 20, 20)), r"poses: expected a graph from image \(1, 28, 28\) to logits, got .*20, 20"),
        (view(outputs=1), "poses: expected 2 logits or more, got 1"),
        (replace(view(), content=b"no graph"), "poses: ONNX Runtime can't read it"),
    ],
    ids=["other images", "one logit", "no graph"],
)
def test_a_view_of_other_images_is_refused(fitted, tmp_path, changed, message):
    network, novelty = fitted
    save_artifact(tmp_path, network, CONFIG, {"classes": [*"abcd"]}, novelty=replace(novelty, poses=changed))
    with pytest.raises(ArtifactError, match=rf"novelty\.safetensors: {message}"):
        load_artifact(tmp_path)


def test_turned_moved_and_covered_images_are_flagged(fitted):
    """The other views of this untrained network don't see that a bar has moved."""
    network, novelty = fitted
    chain, threshold = LiveChain(network), novelty.thresholds[0.05]
    ordinary_B = images(2000, 74).inputs_B.numpy()
    assert (novelty.score(chain, ordinary_B) > threshold).mean() == pytest.approx(0.05, abs=0.04)
    for name, changed_B in {
        "turned": np.rot90(ordinary_B, axes=(2, 3)),
        "moved": np.roll(ordinary_B, 6, axis=2) * (np.arange(28) > 5)[:, None],
        "covered": ordinary_B * ((np.arange(28) < 6) | (np.arange(28) > 22))[:, None],
    }.items():
        views = novelty.views(chain, np.ascontiguousarray(changed_B, np.float32))
        assert tuple(views) == novelty.view_names == ("appearance", "features", "pose")
        assert (views["pose"] > threshold).mean() > 5 * 0.05, name  # five times as often as ordinary ones


def test_all_views_share_thresholds_at_their_rates(fitted):
    network, novelty = fitted
    scores_B = novelty.score(LiveChain(network), images(1000, 73).inputs_B.numpy())
    for rate in FALSE_ALARM_RATES:
        assert (scores_B > novelty.thresholds[rate]).mean() == pytest.approx(rate, abs=2e-3)


def test_training_is_repeatable_and_leaves_global_randomness():
    arguments = images(200, 1), images(200, 2), np.linspace(0, 1, 200)
    state = torch.get_rng_state()
    first, second = (fit_poses(*arguments, console=QUIET, epochs=2) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def squares_B() -> torch.Tensor:
    """White squares in the middle, on black."""
    squares_B = torch.zeros(2000, 1, 28, 28)
    squares_B[:, :, 9:19, 9:19] = 1
    return squares_B


def moments(images_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Brightness, and position of its centre across and down relative to the middle, in pixels."""
    sum_B = images_B.sum((1, 2, 3))
    place = torch.arange(28) - 13.5
    return sum_B, (images_B.sum((1, 2)) * place).sum(1) / sum_B, (images_B.sum((1, 3)) * place).sum(1) / sum_B


def test_variations_stay_within_the_ordinary_range(squares_B):
    varied_B = Transforms(seed=1).vary(squares_B)
    assert varied_B.min() >= 0
    assert varied_B.max() <= 1
    sum_B, across_B, down_B = moments(varied_B)
    calm_B = (varied_B == 0).float().mean((1, 2, 3)) > 0.7  # without noise
    for offset_B in (across_B, down_B):
        assert offset_B[calm_B].abs().max() < 2.2
    assert (across_B[calm_B].abs() > 1).float().mean() > 0.2
    least, most = 100 * 0.93**2 * 0.7, 100 * 1.04**2 * 1.1
    assert ((sum_B[calm_B] > least - 3) & (sum_B[calm_B] < most + 3)).all()


def test_transformations_leave_the_ordinary_range(squares_B):
    transformed_B = Transforms(seed=2).transform(squares_B)
    calm_B = transformed_B[:, 0].amax(2).amin(1) == 0
    sum_B, across_B, down_B = (one[calm_B] for one in moments(transformed_B))
    is_moved_B = torch.maximum(across_B.abs(), down_B.abs()) > 2.9
    is_reduced_B = sum_B < 100 * 0.82**2 + 3
    assert is_moved_B.float().mean() == pytest.approx(0.28, abs=0.06)  # moved, or both
    assert is_reduced_B.float().mean() > 0.25
    assert not torch.equal(Transforms(seed=2).transform(squares_B), Transforms(seed=3).transform(squares_B))


def test_a_cover_hides_a_part_of_the_object(squares_B):
    covered_B, hides_B = Transforms(seed=3).cover(squares_B)
    changed_B = covered_B != squares_B
    lost_B = (squares_B * changed_B).sum((1, 2, 3)) / 100
    assert torch.equal(hides_B, lost_B > 0.08)
    assert 0.2 < hides_B.float().mean() < 0.95
    for changed_HW in changed_B[:50, 0]:
        rows, columns = changed_HW.any(1).nonzero().ravel(), changed_HW.any(0).nonzero().ravel()
        if len(rows):
            assert rows[-1] - rows[0] <= 18
            assert columns[-1] - columns[0] <= 18


def test_a_batch_has_three_kinds_in_order():
    plain_B = as_inputs(images(500, 4).images_B)
    images_B, kinds_B = Transforms(seed=4).draw_batch(plain_B, plain_B)
    assert len(images_B) == len(kinds_B)
    assert torch.equal(kinds_B, kinds_B.sort().values)
    assert kinds_B.unique().tolist() == [0, 1, 2]
    assert (kinds_B == 0).sum() == (kinds_B == 1).sum() > (kinds_B == 2).sum() > 0
