"""What is fitted, against simulations whose truth is known, and second implementations."""

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from torch import nn

from model import MonteCarloDropout, summarize
from model.calibration import COVERAGES, tempered
from model.chain import Chain
from training.calibrate import (
    conformal_quantile,
    estimate,
    fit_calibration,
    fit_novelty,
    fit_temperature,
    least_confidence,
)
from training.data import Images

CONSOLE = Console(quiet=True)


def simulated(images: int, seed: int, sharpness: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right, or too sharp, and classes drawn from the right ones."""
    rng = np.random.default_rng(seed)
    right_BC = rng.dirichlet(np.full(10, 0.03), size=images)
    labels_B = (rng.random(images)[:, None] > right_BC.cumsum(axis=1)).sum(axis=1).clip(max=9)
    return tempered(right_BC, 1 / sharpness), labels_B


def test_the_quantile_is_the_score_of_rank_n_plus_1_times_coverage():
    scores_B = np.random.default_rng(61).permutation(np.arange(1, 100))  # n + 1 = 100
    assert [conformal_quantile(scores_B, coverage) for coverage in COVERAGES] == [80, 90, 95, 99]
    assert conformal_quantile(scores_B[:98], 0.995) is None
    assert conformal_quantile(np.arange(9.0), 0.9) == 8


def test_the_quantile_covers_new_scores_as_promised():
    """Of n scores, the coverage is Beta(rank, n + 1 - rank) distributed: its mean is rank / (n + 1)."""
    rng = np.random.default_rng(62)
    for coverage in COVERAGES:
        covered = [(rng.random(100) <= conformal_quantile(rng.random(199), coverage)).mean() for _ in range(400)]
        assert np.mean(covered) == pytest.approx(coverage, abs=4 * np.std(covered) / 20)


@pytest.mark.parametrize("sharpness", [0.5, 1, 2])
def test_the_temperature_undoes_sharpness(sharpness):
    assert fit_temperature(*simulated(20_000, 63, sharpness)) == pytest.approx(sharpness, rel=0.05)


def test_all_right_is_answered_and_all_wrong_never():
    probs_BC, _ = simulated(1000, 64)
    right_B = probs_BC.argmax(axis=1)
    assert least_confidence(probs_BC, right_B, 0.01) == probs_BC.max(axis=1).min()
    assert least_confidence(probs_BC, (right_B + 1) % 10, 0.05) is None


def test_the_bound_on_the_risk_is_clopper_and_pearsons():
    """Of 300 images the 100 least sure are wrong: the lowest threshold is where their number is still bounded."""
    confidence_B = np.linspace(0.99, 0.6, 300)
    probs_BC = np.stack([confidence_B, 1 - confidence_B], axis=1)
    labels_B = (np.arange(300) >= 200).astype(int)
    answered = sum(confidence_B >= least_confidence(probs_BC, labels_B, 0.05))

    def upper(answered: int) -> float:
        return stats.binomtest(max(answered - 200, 0), answered).proportion_ci(0.9, "exact").high  # 95 % on one side

    assert upper(answered) <= 0.05 < upper(answered + 3)  # the thresholds tried are two or three images apart
    assert least_confidence(probs_BC[:90], labels_B[:90], 0.05) is None  # too few to allow for one error


@pytest.mark.parametrize("risk", [0.02, 0.05])
def test_the_risk_among_the_answered_is_kept_nineteen_times_of_twenty(risk):
    """Probabilities are right, so that the true risk above a threshold is the mean of what is missing to 1."""
    population_BC, _ = simulated(200_000, 65)
    confidence_B = population_BC.max(axis=1)
    kept = []
    for seed in range(100):
        least = least_confidence(*simulated(2000, 1000 + seed), risk)
        kept.append(least is None or (1 - confidence_B[confidence_B >= least]).mean() <= risk)
    assert np.mean(kept) >= 0.95 - 4 * (0.95 * 0.05 / 100) ** 0.5
    assert any(least_confidence(*simulated(2000, 1000 + seed), risk) is not None for seed in range(5))


def test_a_calibration_keeps_its_promises_on_other_images():
    probs_BC, labels_B = simulated(10_000, 66, sharpness=1.5)
    information_B = np.random.default_rng(67).random(10_000)
    fitted = fit_calibration(probs_BC, information_B, labels_B, estimator="moments", samples=0)
    assert (fitted.estimator, fitted.samples) == ("moments", 0)
    assert fitted.temperature == pytest.approx(1.5, rel=0.05)
    assert fitted.reference["mutual_information"][50] == pytest.approx(np.median(information_B), abs=1e-6)
    assert fitted.reference["predictive_entropy"][100] == pytest.approx(stats.entropy(probs_BC, axis=1).max(), abs=1e-6)
    others_BC, labels_B = simulated(10_000, 68, sharpness=1.5)
    others_BC, uniform_B = fitted.probabilities(others_BC), np.random.default_rng(69).random(10_000)
    for method in ("lac", "aps"):
        for coverage in COVERAGES:
            members_BC = fitted.prediction_set(others_BC, uniform_B, coverage=coverage, method=method)
            assert members_BC[np.arange(10_000), labels_B].mean() == pytest.approx(coverage, abs=0.015)
    confidence_B, wrong_B = others_BC.max(axis=1), others_BC.argmax(axis=1) != labels_B
    for risk, least in fitted.confidences.items():
        assert wrong_B[confidence_B >= least].mean() <= risk * 1.2


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(70)
    layers = [nn.Linear(784, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 12), nn.ReLU(), nn.Dropout(0.4)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(12, 4)).requires_grad_(requires_grad=False)


def images(count: int, seed: int) -> Images:
    """Bright bars, at the place of their class."""
    rng = np.random.default_rng(seed)
    labels_B = np.arange(count) % 4
    pixels_BHW = rng.integers(0, 30, (count, 28, 28))
    for pixels_HW, label in zip(pixels_BHW, labels_B, strict=True):
        pixels_HW[:, 7 * label : 7 * label + 5] += rng.integers(120, 200)
    return Images(torch.from_numpy(pixels_BHW.astype(np.uint8)), torch.from_numpy(labels_B))


def test_estimates_are_those_of_the_library(network):
    some = images(7, 71)
    found = estimate(network, some, samples=(10, 30), seed=3, console=CONSOLE)
    assert list(found) == [("eval", 0), ("masks", 10), ("masks", 30), ("moments", 0)]
    mc = MonteCarloDropout(network)
    for samples in (10, 30):
        expected = summarize(mc.sample(some.inputs_B, samples=samples, seed=3))
        row = found["masks", samples]
        assert np.allclose(row["probs_BC"], expected.mean, atol=1e-6)
        assert np.allclose(row["information_B"], expected.mutual_information, atol=1e-6)
    assert np.allclose(found["eval", 0]["probs_BC"], mc.predict(some.inputs_B), atol=1e-7)


def test_what_is_unlike_the_training_scores_high_and_ordinary_images_as_often_as_said(network):
    novelty = fit_novelty(network, images(2000, 72), images(2000, 73))
    chain = Chain(network)
    ordinary_B = novelty.score(chain, images(4000, 74).inputs_B.numpy())
    for rate, threshold in novelty.thresholds.items():
        assert (ordinary_B > threshold).mean() == pytest.approx(rate, abs=4 * (2 * rate / 2000) ** 0.5)
    rng = np.random.default_rng(75)
    strange = {
        "blank": np.zeros((5, 1, 28, 28), np.float32),
        "grey": np.full((5, 1, 28, 28), 0.4, np.float32),
        "noise": rng.random((5, 1, 28, 28), np.float32),
        "rotated": np.rot90(images(20, 76).inputs_B.numpy(), axes=(2, 3)),
    }
    for name, images_B in strange.items():
        assert (novelty.score(chain, images_B) > novelty.thresholds[0.01]).all(), name
