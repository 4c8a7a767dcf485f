"""Fit temperature, prediction sets and abstention thresholds to images held out of training."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from rich.console import Console
from scipy import optimize, special, stats

from model.calibration import (
    COVERAGES,
    RISKS,
    SAMPLES,
    Calibration,
    Estimator,
    SetMethod,
    Threshold,
    apply_temperature,
    nonconformity_scores,
)
from training.data import Images
from training.estimates import Estimators, combine_members, estimate
from training.metrics import errors_by_confidence

Array = np.ndarray

CONFIDENCE = 0.95  # of the upper bound on the risk
_MASK_SEED = 0
_UNIFORM_SEED = 0
_STEPS = 100  # number of candidate thresholds
_QUANTILES = np.linspace(0, 1, 101)


def fit_calibrations(
    networks: Sequence[Estimators[Any]], images: Images, *, samples: Sequence[int] = SAMPLES, console: Console
) -> list[Calibration]:
    """Calibrate every estimator on images held out of training.

    Args:
        networks: estimators of one network, or of the members of an ensemble.
        images: labelled calibration images.
        samples: numbers of masks.
        console: console for the progress bar.

    Returns:
        One calibration for each estimator and number of masks.
    """
    members = [
        estimate(network, images, samples=samples, seed=_MASK_SEED, console=console, label="calibrating")
        for network in networks
    ]
    labels_B = images.labels_B.numpy()
    return [
        fit_calibration(**found, labels_B=labels_B, estimator=estimator, samples=count)
        for (estimator, count), found in combine_members(members).items()
    ]


def fit_calibration(
    probs_BC: Array, information_B: Array, labels_B: Array, *, estimator: Estimator, samples: int
) -> Calibration:
    """Fit temperature, prediction sets and abstention for one estimator.

    Args:
        probs_BC: mean class probabilities of labelled images.
        information_B: mutual information, in nats.
        labels_B: their classes.
        estimator: estimator of the probabilities.
        samples: number of its masks; 0 without sampling.
    """
    values = {"predictive_entropy": stats.entropy(probs_BC, axis=1), "mutual_information": information_B}
    reference = {name: np.quantile(value_B, _QUANTILES).round(7).tolist() for name, value_B in values.items()}
    temperature = fit_temperature(probs_BC, labels_B)
    probs_BC = apply_temperature(probs_BC, temperature)
    return Calibration(
        estimator=estimator,
        samples=samples,
        temperature=temperature,
        set_scores=fit_set_scores(probs_BC, labels_B),
        confidences={risk: confidence_threshold(probs_BC, labels_B, risk) for risk in RISKS},
        reference=reference,
    )


def fit_temperature(probs_BC: Array, labels_B: Array) -> float:
    """Find the temperature that minimizes the mean negative log-likelihood."""

    def loss(log_temperature: float) -> float:
        likelihood_B = apply_temperature(probs_BC, np.exp(log_temperature))[np.arange(len(labels_B)), labels_B]
        return -float(np.log(likelihood_B + 1e-300).mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-4}).x))


def fit_set_scores(probs_BC: Array, labels_B: Array) -> dict[SetMethod, dict[float, Threshold]]:
    """Find the thresholds of prediction sets by method and coverage.

    Args:
        probs_BC: calibrated probabilities of labelled images.
        labels_B: their classes.
    """
    uniform_B = np.random.default_rng(_UNIFORM_SEED).random(len(labels_B))
    found: dict[SetMethod, dict[float, Threshold]] = {}
    for method in get_args(SetMethod):
        scores_B = nonconformity_scores(probs_BC, uniform_B, method=method)[np.arange(len(labels_B)), labels_B]
        if method == "mondrian":
            by_class = [scores_B[labels_B == label] for label in range(probs_BC.shape[1])]
            found[method] = {coverage: class_quantiles(by_class, coverage) for coverage in COVERAGES}
        else:
            found[method] = {coverage: conformal_quantile(scores_B, coverage) for coverage in COVERAGES}
    return found


def class_quantiles(scores: Sequence[Array], coverage: float) -> tuple[float | None, ...] | None:
    """Compute the `conformal_quantile` of each class (label-conditional, Vovk 2012, arXiv:1209.2673).

    Args:
        scores: for each class, the scores of its images.
        coverage: of each class.

    Returns:
        One for each class, None for a class with too few images; None if all classes have too few.
    """
    quantiles = tuple(conformal_quantile(scores_N, coverage) for scores_N in scores)
    return None if all(one is None for one in quantiles) else quantiles


def conformal_quantile(scores_B: Array, coverage: float) -> float | None:
    """Compute the score that a new score exceeds with probability at most 1 - coverage, for any distribution.

    It is the score of rank ceil((n + 1) coverage) among n (Lei et al. 2018, doi:10.1080/01621459.2017.1307116); None
    if n is too small.
    """
    rank = math.ceil((len(scores_B) + 1) * coverage - 1e-9)
    return float(np.sort(scores_B)[rank - 1]) if rank <= len(scores_B) else None


def confidence_threshold(probs_BC: Array, labels_B: Array, risk: float) -> float | None:
    """Find the smallest confidence to answer at, so that at most a fraction `risk` of the answers is wrong.

    Thresholds are tested from strict to loose until the upper bound on the risk (Clopper & Pearson 1934, 95 %
    confidence) exceeds `risk`. As the order is fixed in advance, the bound holds for the last threshold that passes
    (fixed-sequence testing, Angelopoulos et al. 2021, arXiv:2110.01052). The first threshold leaves enough answers to
    allow one error. The result is None if it fails, or if there are too few images.
    """
    confidence_B = probs_BC.max(axis=1)
    errors_N = errors_by_confidence(confidence_B, probs_BC.argmax(axis=1) == labels_B)
    descending_N = -np.sort(-confidence_B)
    first = least_images(risk)
    if first > len(labels_B):
        return None
    threshold = None
    for answered in np.linspace(first, len(labels_B), _STEPS, dtype=int):
        if _upper_bound(errors_N[answered - 1], answered) > risk:
            break
        threshold = float(descending_N[answered - 1])
    return threshold


def least_images(risk: float) -> int:
    """The number of calibration images from which `confidence_threshold` can find one for a risk."""
    return next(count for count in itertools.count(2) if _upper_bound(1, count) <= risk)


def _upper_bound(errors: int, answered: int) -> float:
    return 1.0 if errors == answered else float(special.betaincinv(errors + 1, answered - errors, CONFIDENCE))
