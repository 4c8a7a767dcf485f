"""Prediction sets whose coverage follows the data, by feedback: the thresholds of the calibration are moved.

Adaptive conformal inference (Gibbs & Candes 2021, arXiv:2106.00170) changes the level of the quantile, which needs all
calibration scores. This is its form that changes the quantile itself, the quantile tracking of conformal PID control
(Angelopoulos et al. 2023, arXiv:2307.16895), which needs the calibrated threshold alone. Thresholds move
in log-odds: where images have changed, true classes have scores near 1, which log-odds tell apart.
"""

import math
from dataclasses import replace

import numpy as np

from model.calibration import Calibration, SetMethod
from model.chain import Array

METHODS: tuple[SetMethod, ...] = ("lac", "aps")  # whose scores are in [0, 1]
LIMIT = 12.0  # log-odds of a score from which a threshold admits every class; 1 - score is 6e-6 there
STEP = 0.4  # log-odds; chosen on changed calibration images, see docs/results.md


def move_threshold(threshold: float, offset: float) -> float:
    """Move the threshold of a prediction set.

    Args:
        threshold: the calibrated threshold, a nonconformity score in [0, 1].
        offset: by how much to move it, in log-odds.

    Returns:
        The score up to which classes are in the set: infinity, for all classes, from log-odds of `LIMIT`, and minus
        infinity, for none, below -`LIMIT`. With an offset of 0, the calibrated threshold.
    """
    if offset == 0:
        return threshold
    moved = _log_odds(threshold) + offset
    if abs(moved) < LIMIT:
        return 1 / (1 + math.exp(-moved))
    return math.copysign(math.inf, moved)


def next_offsets(offsets: Array, missed: Array, coverages: Array, *, step: float = STEP) -> Array:
    """Raise thresholds after sets without the true class, and lower them after sets with it.

    offset' = offset + step (missed - (1 - coverage)). The offset stays within 2 `LIMIT` + step, so that over any T
    images, of any distribution, the fraction of misses differs from 1 - coverage by at most
    (2 `LIMIT` + step) / (step T), as docs/method.md derives.

    Args:
        offsets: offsets, in log-odds.
        missed: booleans of the same shape, true where the set at this offset did not contain the true class.
        coverages: requested coverages, of the same shape or one that broadcasts.
        step: size of a step, in log-odds.
    """
    moved: Array = offsets + step * (missed - (1 - coverages))
    return moved


def adapt(calibration: Calibration, offset: float, *, coverage: float, method: SetMethod) -> Calibration:
    """Return a calibration with one threshold moved, for `Calibration.prediction_set`; see `move_threshold`."""
    threshold = calibration.set_scores[method][coverage]
    if threshold is None or isinstance(threshold, tuple) or offset == 0:  # one for each class: not of `METHODS`
        return calibration
    moved = {**calibration.set_scores[method], coverage: move_threshold(threshold, offset)}
    return replace(calibration, set_scores={**calibration.set_scores, method: moved})


def _log_odds(score: float) -> float:
    """Log-odds of a score in [0, 1], between -`LIMIT` and `LIMIT`."""
    with np.errstate(divide="ignore"):
        return float(np.clip(np.log(score) - np.log1p(-score), -LIMIT, LIMIT))
