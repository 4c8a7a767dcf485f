"""Drift: how far recent images differ from the calibration images, measured by uncertainty, without labels."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from model import Artifact, find_calibration
from model.calibration import Calibration, Estimator
from service.inference.predictor import ESTIMATORS
from service.monitoring.prediction_log import RIGHT, UNKNOWN, PredictionLog, Records, key
from service.schemas.answers import MODES

STATISTICS = ("predictive_entropy", "mutual_information")
_DECIMALS = 7  # of the reference quantiles
_TYPICAL_SAMPLES = 100
_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Drift of the recent predictions of one estimator.

    Attributes:
        images: number of predictions.
        distances: by statistic, the Kolmogorov-Smirnov distance from the reference; 0 without images.
        p_values: by statistic, the p-value of the distance; 1 without images.
        accuracy: mean calibrated confidence, which estimates the accuracy as long as there is no drift; NaN without
            images.
    """

    images: int
    distances: dict[str, float]
    p_values: dict[str, float]
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class FeedbackSummary:
    """Accuracy and calibration of the recent predictions with feedback.

    Attributes:
        images: number of predictions.
        accuracy: fraction of right predictions; NaN without images.
        calibration_error: expected calibration error over ten bins of confidence (Naeini et al. 2015): the mean
            absolute difference of confidence and accuracy, weighted by the bins' images; NaN without images.
    """

    images: int
    accuracy: float
    calibration_error: float


class Reference:
    """Uncertainty of a model on its calibration images, as the reference for drift.

    Attributes:
        model: key of the model in the prediction log.

    Args:
        artifact: the model.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.model = key(artifact.sha256)
        self._calibrations = artifact.calibrations
        self._classes = len(artifact.classes)
        self._test_metrics = artifact.card.get("metrics", {}).get("test", {})
        self._images = int(artifact.card.get("data", {}).get("split", {}).get("calibration", 0)) or None

    def drifts(self, log: PredictionLog, *, images: int) -> Iterator[tuple[Estimator, Drift]]:
        """Yield the drift of the newest `images` predictions of each calibrated estimator."""
        for estimator in self.estimators():

            def is_match(records: Records, index: int = ESTIMATORS.index(estimator)) -> np.ndarray:
                matches: np.ndarray = (records["model"] == self.model) & (records["estimator"] == index)
                return matches

            newest = log.newest(is_match, images)
            samples = int(np.median(newest["samples"])) if len(newest) else _TYPICAL_SAMPLES
            reference = self._calibration(estimator, samples).reference
            tests = {
                name: self._kolmogorov_smirnov(newest[name], reference[name]) for name in self.statistics(estimator)
            }
            yield (
                estimator,
                Drift(
                    images=len(newest),
                    distances={name: distance for name, (distance, _) in tests.items()},
                    p_values={name: p_value for name, (_, p_value) in tests.items()},
                    accuracy=float(newest["confidence"].mean()) if len(newest) else math.nan,
                ),
            )

    def accuracy(self, estimator: Estimator) -> float:
        """Accuracy on the test images, from the model card; NaN if it is missing."""
        return float(self._test_metrics.get(MODES[estimator], {}).get("accuracy", math.nan))

    def estimators(self) -> list[Estimator]:
        """The calibrated estimators."""
        calibrated = {one.estimator for one in self._calibrations}
        return [estimator for estimator in ESTIMATORS if estimator in calibrated]

    def statistics(self, estimator: Estimator) -> tuple[str, ...]:
        """The statistics that an estimator has."""
        return STATISTICS[:1] if estimator == "eval" else STATISTICS

    def cumulative(self, estimator: Estimator, statistic: str, bounds: Sequence[float]) -> list[float]:
        """Fraction of the calibration images up to each bound; bounds are fractions of ln(classes), the maximum."""
        reference = self._calibration(estimator, _TYPICAL_SAMPLES).reference[statistic]
        quantiles, levels = _distribution(tuple(reference))
        parts: list[float] = np.interp(np.array(bounds) * math.log(self._classes), quantiles, levels, right=1).tolist()
        return parts

    def _calibration(self, estimator: Estimator, samples: int) -> Calibration:
        candidates = [one for one in self._calibrations if one.estimator == estimator]
        return find_calibration(candidates, estimator, samples) or candidates[0]

    def _kolmogorov_smirnov(self, values_B: np.ndarray, reference: Sequence[float]) -> tuple[float, float]:
        """Kolmogorov-Smirnov distance at the reference's quantiles, and its asymptotic p-value."""
        count = len(values_B)
        if count == 0:
            return 0.0, 1.0
        quantiles, levels = _distribution(tuple(reference))
        sorted_B = np.sort(values_B.round(_DECIMALS))
        distance = float(np.abs(np.searchsorted(sorted_B, quantiles, side="right") / count - levels).max())
        effective = count if self._images is None else count * self._images / (count + self._images)
        return distance, float(special.kolmogorov(distance * math.sqrt(effective)))


def summarize_feedback(log: PredictionLog) -> FeedbackSummary:
    """Summarize the recent predictions with feedback."""
    labelled = log.newest(lambda records: records["outcome"] != UNKNOWN)
    if len(labelled) == 0:
        return FeedbackSummary(images=0, accuracy=math.nan, calibration_error=math.nan)
    right_B = labelled["outcome"] == RIGHT
    bins_B = np.minimum((labelled["confidence"] * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins_B, weights=labelled["confidence"] - right_B, minlength=_BINS)
    return FeedbackSummary(
        images=len(labelled),
        accuracy=float(right_B.mean()),
        calibration_error=float(np.abs(gaps).sum() / len(labelled)),
    )


@functools.lru_cache
def _distribution(reference: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct quantiles, and the cumulative distribution at each."""
    quantiles = np.array(reference, np.float32)
    levels = np.linspace(0, 1, len(quantiles))
    is_last = np.append(quantiles[1:] > quantiles[:-1], True)
    return quantiles[is_last], levels[is_last]
