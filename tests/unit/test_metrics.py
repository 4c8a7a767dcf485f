"""Against the definitions, written as loops, and against other libraries."""

import importlib.util
import itertools
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import missing

import training.vision  # noqa: F401 - the other libraries import torchvision, which this lets beside a CPU-only torch
from training.metrics import calibration_error, classification_metrics, detection_metrics, selective_metrics


@pytest.fixture
def predicted() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(101)
    return rng.dirichlet(np.ones(4) / 3, size=157), rng.integers(0, 4, 157)


def in_bins(probs: list[float], happened: list[bool], members: list[list[int]]) -> float:
    total = 0.0
    for bin_ in members:
        if bin_:
            mean, frequency = np.mean([probs[b] for b in bin_]), np.mean([happened[b] for b in bin_])
            total += abs(mean - frequency) * len(bin_) / len(probs)
    return total


def equal_width(probs: list[float], bins: int) -> list[list[int]]:
    return [[b for b, p in enumerate(probs) if k / bins < p <= (k + 1) / bins] for k in range(bins)]


def test_calibration_errors_are_those_of_the_loop(predicted):
    probs_BC, labels_B = predicted
    confidence, right = probs_BC.max(axis=1).tolist(), (probs_BC.argmax(axis=1) == labels_B).tolist()
    found = classification_metrics(probs_BC, labels_B)
    assert found["ece"] == pytest.approx(in_bins(confidence, right, equal_width(confidence, 15)))
    ascending = sorted(range(157), key=lambda b: confidence[b])
    members = [part.tolist() for part in np.array_split(ascending, 15)]
    assert found["ece_equal_mass"] == pytest.approx(in_bins(confidence, right, members))
    each = [
        in_bins(probs_BC[:, c].tolist(), (labels_B == c).tolist(), equal_width(probs_BC[:, c].tolist(), 15))
        for c in range(4)
    ]
    assert found["classwise_ece"] == pytest.approx(np.mean(each))


def test_calibration_error_is_zero_for_calibrated_and_one_for_wrong():
    assert calibration_error(np.full(4, 0.25), np.array([True, False, False, False])) == 0
    for equal_mass in (False, True):
        assert calibration_error(np.ones(30), np.zeros(30), equal_mass=equal_mass) == 1


def test_edges_of_the_range_have_a_bin():
    assert calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0


def test_selective_scores_are_those_of_the_loop(predicted):
    probs_BC, labels_B = predicted
    labels_B = np.where(np.random.default_rng(102).random(157) < 0.6, probs_BC.argmax(axis=1), labels_B)
    confidence_B, right_B = probs_BC.max(axis=1), probs_BC.argmax(axis=1) == labels_B
    order = sorted(range(157), key=lambda b: -confidence_B[b])
    errors = [sum(not right_B[b] for b in order[:n]) for n in range(1, 158)]
    found = selective_metrics(confidence_B, right_B)
    assert found["aurc"] == pytest.approx(np.mean([e / n for n, e in enumerate(errors, start=1)]))
    assert found["augrc"] == pytest.approx(np.mean([e / 157 for e in errors]))
    assert (
        found["coverage_at_5_risk"] == max((n for n, e in enumerate(errors, start=1) if e <= 0.05 * n), default=0) / 157
    )


def test_all_right_covers_all_and_all_wrong_nothing():
    confidence_B = np.linspace(0.5, 1, 10)
    assert selective_metrics(confidence_B, np.ones(10, bool)) == {"aurc": 0, "augrc": 0, "coverage_at_5_risk": 1}
    assert selective_metrics(confidence_B, np.zeros(10, bool))["coverage_at_5_risk"] == 0


def test_areas_are_those_of_counted_pairs():
    rng = np.random.default_rng(96)
    inside_B, outside_B = rng.normal(size=60), rng.normal(1, 1, size=40)
    found = detection_metrics(inside_B, outside_B)
    pairs = [out > in_ for in_, out in itertools.product(inside_B, outside_B)]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    threshold = np.sort(outside_B)[2]  # 38 of 40 score no less
    assert found["fpr95"] == pytest.approx((inside_B >= threshold).mean())
    precisions = [
        (outside_B >= score).sum() / ((outside_B >= score).sum() + (inside_B >= score).sum()) for score in outside_B
    ]
    assert found["aupr"] == pytest.approx(np.mean(precisions))


@pytest.fixture(scope="module")
def peers():
    """Metrics of torchmetrics and torch-uncertainty."""
    if sys.version_info >= (3, 14):
        pytest.skip("torch-uncertainty is not there yet for this Python")
    if importlib.util.find_spec("torch_uncertainty") is None:
        missing("torch-uncertainty is not installed")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs to change
        patch.setenv("MPLBACKEND", "Agg")
        from torch_uncertainty.metrics import classification  # noqa: PLC0415 - slow, and not always there
    return classification


@pytest.mark.parametrize("seed", range(3))
def test_other_libraries_find_the_same(peers, seed):
    rng = np.random.default_rng(seed)
    probs_BC = rng.dirichlet(np.full(6, 0.05), size=2000)
    labels_B = (rng.random((2000, 1)) > np.sqrt(probs_BC.cumsum(axis=1))).sum(axis=1).clip(max=5)  # not quite as said
    found = classification_metrics(probs_BC, labels_B)
    theirs = {
        "ece": peers.CalibrationError(task="multiclass", num_classes=6, num_bins=15),
        "ece_equal_mass": peers.AdaptiveCalibrationError(task="multiclass", num_classes=6, num_bins=15),
        "classwise_ece": peers.ClasswiseCalibrationError(num_classes=6, num_bins=15),
        "coverage_at_5_risk": peers.CovAt5Risk(),
        "brier": peers.BrierScore(num_classes=6),
    }
    for name, metric in theirs.items():
        assert found[name] == pytest.approx(value_of(metric, probs_BC, labels_B), rel=1e-4), name
    # Theirs are trapezoids from the first image to the last: of these two, half is missing to the sum that we divide.
    wrong_B = probs_BC.argmax(axis=1) != labels_B
    first, last = wrong_B[probs_BC.max(axis=1).argmax()], wrong_B.mean()
    for name, metric, ends in (("aurc", peers.AURC(), first + last), ("augrc", peers.AUGRC(), first / 2000 + last)):
        total = value_of(metric, probs_BC, labels_B) * (2000 - 1) + ends / 2
        assert found[name] == pytest.approx(total / 2000, rel=1e-5), name


def value_of(metric, probs_BC, labels_B):
    metric.update(torch.from_numpy(probs_BC), torch.from_numpy(labels_B))
    return float(metric.compute())
