"""How far what comes in has drifted from what the model was calibrated on: told by its uncertainty, without labels."""

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
_DECIMALS = 7  # of the reference
_TYPICAL_SAMPLES = 100
_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What the newest predictions of one estimator tell.

    Attributes:
        images: how many there are.
        distances: by statistic, the Kolmogorov-Smirnov distance from the reference; 0 for no images.
        p_values: by statistic, how probable so large a distance is if nothing has drifted; 1 for no images.
        accuracy: the mean calibrated confidence, which is the part of right predictions as long as nothing has
            drifted; NaN for no images.
    """

    images: int
    distances: dict[str, float]
    p_values: dict[str, float]
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class FeedbackSummary:
    """What the newest predictions whose true class is known tell.

    Attributes:
        images: how many there are.
        accuracy: the part that is right; NaN for no images.
        calibration_error: mean difference of confidence and accuracy over ten bins of confidence, weighted by their
            images (expected calibration error, Naeini et al. 2015); NaN for no images.
    """

    images: int
    accuracy: float
    calibration_error: float


class Reference:
    """What a model was calibrated on, and how what comes in differs from it.

    Attributes:
        model: its key in records.

    Args:
        artifact: the model.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.model = key(artifact.sha256)
        self._calibrations = artifact.calibrations
        self._classes = len(artifact.classes)
        self._measured = artifact.card.get("metrics", {}).get("test", {})
        self._images = int(artifact.card.get("data", {}).get("split", {}).get("calibration", 0)) or None

    def drifts(self, log: PredictionLog, *, images: int) -> Iterator[tuple[Estimator, Drift]]:
        """Yield what the newest `images` predictions of each calibrated estimator tell."""
        for estimator in self.estimators():

            def is_ours(ring: Records, place: int = ESTIMATORS.index(estimator)) -> np.ndarray:
                ours: np.ndarray = (ring["model"] == self.model) & (ring["estimator"] == place)
                return ours

            newest = log.newest(is_ours, images)
            samples = int(np.median(newest["samples"])) if len(newest) else _TYPICAL_SAMPLES
            reference = self._calibration(estimator, samples).reference
            found = {name: self._distance(newest[name], reference[name]) for name in self.statistics(estimator)}
            yield (
                estimator,
                Drift(
                    images=len(newest),
                    distances={name: distance for name, (distance, _) in found.items()},
                    p_values={name: p_value for name, (_, p_value) in found.items()},
                    accuracy=float(newest["confidence"].mean()) if len(newest) else math.nan,
                ),
            )

    def accuracy(self, estimator: Estimator) -> float:
        """What the card says of the test images; NaN if it says nothing."""
        return float(self._measured.get(MODES[estimator], {}).get("accuracy", math.nan))

    def estimators(self) -> list[Estimator]:
        """Those that are calibrated."""
        known = {one.estimator for one in self._calibrations}
        return [estimator for estimator in ESTIMATORS if estimator in known]

    def statistics(self, estimator: Estimator) -> tuple[str, ...]:
        """Those that an estimator has."""
        return STATISTICS[:1] if estimator == "eval" else STATISTICS

    def cumulative(self, estimator: Estimator, statistic: str, bounds: Sequence[float]) -> list[float]:
        """The part of the calibration's images up to each bound; bounds as a part of ln(classes), the maximum."""
        reference = self._calibration(estimator, _TYPICAL_SAMPLES).reference[statistic]
        quantiles, levels = _distribution(tuple(reference))
        found: list[float] = np.interp(np.array(bounds) * math.log(self._classes), quantiles, levels, right=1).tolist()
        return found

    def _calibration(self, estimator: Estimator, samples: int) -> Calibration:
        fitting = [one for one in self._calibrations if one.estimator == estimator]
        return find_calibration(fitting, estimator, samples) or fitting[0]

    def _distance(self, values_B: np.ndarray, reference: Sequence[float]) -> tuple[float, float]:
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
    """What is known of predictions whose true class was told."""
    known = log.newest(lambda ring: ring["outcome"] != UNKNOWN)
    if len(known) == 0:
        return FeedbackSummary(images=0, accuracy=math.nan, calibration_error=math.nan)
    right_B = known["outcome"] == RIGHT
    bins_B = np.minimum((known["confidence"] * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins_B, weights=known["confidence"] - right_B, minlength=_BINS)
    return FeedbackSummary(
        images=len(known), accuracy=float(right_B.mean()), calibration_error=float(np.abs(gaps).sum() / len(known))
    )


@functools.lru_cache
def _distribution(reference: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles, each once, and which part of the distribution is not above each."""
    quantiles = np.array(reference, np.float32)
    levels = np.linspace(0, 1, len(quantiles))
    is_last = np.append(quantiles[1:] > quantiles[:-1], True)
    return quantiles[is_last], levels[is_last]
