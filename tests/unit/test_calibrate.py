"""What is fitted, against simulations whose truth is known, and second implementations."""

import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import special, stats
from torch import nn

from model.calibration import COVERAGES, SetMethod, apply_temperature
from training.calibrate import (
    confidence_threshold,
    conformal_quantile,
    fit_calibration,
    fit_calibrations,
    fit_set_scores,
    fit_temperature,
)
from training.data import Images
from training.estimates import Estimators, combine_members, estimate

CONSOLE = Console(quiet=True)


def simulated(images: int, seed: int, sharpness: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right, or too sharp, and classes drawn from the right ones."""
    rng = np.random.default_rng(seed)
    right_BC = rng.dirichlet(np.full(10, 0.03), size=images)
    labels_B = (rng.random(images)[:, None] > right_BC.cumsum(axis=1)).sum(axis=1).clip(max=9)
    return apply_temperature(right_BC, 1 / sharpness), labels_B


def test_conformal_quantile_has_the_expected_rank():
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
    assert confidence_threshold(probs_BC, right_B, 0.01) == probs_BC.max(axis=1).min()
    assert confidence_threshold(probs_BC, (right_B + 1) % 10, 0.05) is None


def test_the_bound_on_the_risk_is_clopper_and_pearsons():
    """Of 300 images the 100 least sure are wrong: the lowest threshold is where their number is still bounded."""
    confidence_B = np.linspace(0.99, 0.6, 300)
    probs_BC = np.stack([confidence_B, 1 - confidence_B], axis=1)
    labels_B = (np.arange(300) >= 200).astype(int)
    answered = sum(confidence_B >= confidence_threshold(probs_BC, labels_B, 0.05))

    def upper(answered: int) -> float:
        return stats.binomtest(max(answered - 200, 0), answered).proportion_ci(0.9, "exact").high  # 95 % on one side

    assert upper(answered) <= 0.05 < upper(answered + 3)  # the thresholds tried are two or three images apart
    assert confidence_threshold(probs_BC[:90], labels_B[:90], 0.05) is None  # too few to allow for one error


@pytest.mark.parametrize("risk", [0.02, 0.05])
def test_risk_bound_holds_in_95_percent_of_calibrations(risk):
    """Probabilities are right, so that the true risk above a threshold is the mean of what is missing to 1."""
    population_BC, labels_B = simulated(200_000, 65)
    confidence_B = population_BC.max(axis=1)
    thresholds = [
        confidence_threshold(probs_BC, few_B, risk)
        for probs_BC, few_B in zip(np.split(population_BC, 100), np.split(labels_B, 100), strict=True)
    ]
    kept = [least is None or (1 - confidence_B[confidence_B >= least]).mean() <= risk for least in thresholds]
    assert np.mean(kept) >= 0.95 - 4 * (0.95 * 0.05 / 100) ** 0.5
    assert any(least is not None for least in thresholds)


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
    for method in get_args(SetMethod):
        for coverage in COVERAGES:
            members_BC = fitted.prediction_set(others_BC, uniform_B, coverage=coverage, method=method)
            assert members_BC[np.arange(10_000), labels_B].mean() == pytest.approx(coverage, abs=0.015)
    confidence_B, wrong_B = others_BC.max(axis=1), others_BC.argmax(axis=1) != labels_B
    for risk, least in fitted.confidences.items():
        assert wrong_B[confidence_B >= least].mean() <= risk * 1.2


def simulated_classes(images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of three classes of different frequency and difficulty, and the true classes."""
    labels_B = rng.choice(3, size=images, p=[0.6, 0.3, 0.1])
    logits_BC = rng.normal(size=(images, 3)) + np.array([3.0, 1.0, 0.3])[labels_B][:, None] * np.eye(3)[labels_B]
    return special.softmax(logits_BC, axis=1), labels_B


def test_mondrian_sets_are_those_of_conformal_p_values():
    """A class is in the set if its p-value among the class's own images is above 1 - coverage (Vovk 2012)."""
    rng = np.random.default_rng(73)
    probs_BC, labels_B = simulated_classes(400, rng)
    fitted = fit_calibration(probs_BC, np.zeros(400), labels_B, estimator="eval", samples=0)
    known_BC, tested_BC = fitted.probabilities(probs_BC), fitted.probabilities(simulated_classes(300, rng)[0])
    for coverage in COVERAGES:
        members_BC = fitted.prediction_set(tested_BC, np.zeros(300), coverage=coverage, method="mondrian")
        for label in range(3):
            scores = 1 - known_BC[labels_B == label, label]
            for b in range(300):
                p_value = Fraction(int((scores >= 1 - tested_BC[b, label]).sum()) + 1, len(scores) + 1)
                assert members_BC[b, label] == (p_value > 1 - Fraction(str(coverage)))


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_mondrian_covers_each_class_as_promised(coverage):
    """Of n images of a class, the coverage is Beta(rank, n + 1 - rank) distributed, whatever the network."""
    rng = np.random.default_rng(74)
    found, lac = [[], [], []], []
    for _ in range(300):
        probs_BC, labels_B = simulated_classes(200, rng)
        fitted = fit_set_scores(probs_BC, labels_B)
        tested_BC, truth_B = simulated_classes(1000, rng)
        for label, threshold in enumerate(fitted["mondrian"][coverage]):
            images, score_N = int((labels_B == label).sum()), 1 - tested_BC[truth_B == label, label]
            rank = math.ceil(Fraction(str(coverage)) * (images + 1))
            assert (threshold is None) == (rank > images)
            if threshold is not None:
                found[label].append((score_N <= threshold).mean() - rank / (images + 1))
        lac.append((score_N <= fitted["lac"][coverage]).mean())  # of the last class, the hardest
    for differences in found:
        assert np.mean(differences) == pytest.approx(0, abs=4 * np.std(differences) / len(differences) ** 0.5)
    assert np.mean(lac) < coverage - 0.15


def test_classes_with_too_few_images_have_no_threshold():
    probs_BC, _ = simulated(120, 75)
    labels_B = np.repeat([0, 1, 2], [100, 15, 5])
    fitted = fit_set_scores(probs_BC[:, :4], labels_B)["mondrian"]
    limits = {0.8: 4, 0.9: 9, 0.95: 19, 0.99: 99}
    for coverage, least in limits.items():
        assert [one is not None for one in fitted[coverage]] == [count >= least for count in (100, 15, 5, 0)]
    assert fit_set_scores(probs_BC[:3], labels_B[:3])["mondrian"] == dict.fromkeys(COVERAGES)


def test_an_ensemble_is_calibrated_by_its_mean():
    torch.manual_seed(72)
    networks = [
        nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)) for _ in range(2)
    ]
    some = Images(torch.randint(0, 256, (400, 3, 3), dtype=torch.uint8), torch.randint(0, 3, (400,)))
    members = [Estimators.of_chain(network) for network in networks]
    found = fit_calibrations(members, some, samples=(10,), console=CONSOLE)
    joined = combine_members([estimate(one, some, samples=(10,), seed=0, console=CONSOLE) for one in members])
    expected = [
        fit_calibration(**joined[key], labels_B=some.labels_B.numpy(), estimator=key[0], samples=key[1])
        for key in (("eval", 0), ("masks", 10), ("moments", 0))
    ]
    assert found == expected
    assert found != fit_calibrations(members[:1], some, samples=(10,), console=CONSOLE)
