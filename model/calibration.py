"""Calibrated probabilities, prediction sets and abstention.

`training.calibrate` fits them on images held out of training; the artifact's card stores them; this module applies
them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np

from model.chain import Array

Estimator = Literal["eval", "masks", "moments"]
SetMethod = Literal["lac", "aps", "raps", "mondrian"]
Threshold = float | tuple[float | None, ...] | None  # of "mondrian" one for each class

COVERAGES = (0.8, 0.9, 0.95, 0.99)
RISKS = (0.01, 0.02, 0.05)
SAMPLES = (10, 30, 100, 300, 1000)  # numbers of masks for which a calibration is fitted
RANDOM_METHODS: tuple[SetMethod, ...] = ("aps", "raps")  # whose scores depend on a random number
# Of "raps", fixed in advance: the values of the worked example of Angelopoulos & Bates 2021 (arXiv:2107.07511). The
# thresholds of a card hold for these values only.
RAPS_PENALTY = 0.01  # for each rank below
RAPS_FREE_RANKS = 5  # the ranks without penalty
_FIRST_METHODS = ("lac", "aps")  # that every card has; a card may be older than the others
_EPSILON = 1e-30  # added to probabilities before logarithms are taken


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Parameters fitted to the class probabilities of one estimator, and valid for that estimator only.

    Attributes:
        estimator: "eval", "masks" or "moments".
        samples: number of masks; 0 for estimators without sampling.
        temperature: divides the logarithms of the probabilities (Guo et al. 2017, arXiv:1706.04599), after averaging.
        set_scores: by method and coverage, the largest nonconformity score of a class in the prediction set, for
            "mondrian" of each class; None where the calibration had too few images. A card may lack a method.
        confidences: by risk, the smallest confidence at which a prediction is answered; None where no confidence
            suffices.
        reference: quantiles, at equal steps from 0 to 1, of "predictive_entropy" and "mutual_information" in nats,
            before temperature scaling; drift is measured against them.
    """

    estimator: Estimator
    samples: int
    temperature: float
    set_scores: Mapping[SetMethod, Mapping[float, Threshold]]
    confidences: Mapping[float, float | None]
    reference: Mapping[str, Sequence[float]]

    def probabilities(self, probs_BC: Array) -> Array:
        """Calibrate mean probabilities of shape (B, C)."""
        return apply_temperature(probs_BC, self.temperature)

    def prediction_set(self, probs_BC: Array, uniform_B: Array, *, coverage: float, method: SetMethod) -> Array | None:
        """Compute the set of classes that contains the true class with probability `coverage`.

        The guarantee holds on average over images from the distribution of the calibration images (split conformal
        prediction: Vovk et al. 2005; Lei et al. 2018, doi:10.1080/01621459.2017.1307116). With "mondrian" it holds so
        for the images of each class. A set may be empty, when no class is probable enough.

        Args:
            probs_BC: calibrated probabilities.
            uniform_B: random numbers in [0, 1), one for each image; used by `RANDOM_METHODS` only.
            coverage: one of `COVERAGES`.
            method: "lac", least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451); "aps", adaptive ones (Romano et
                al. 2020, arXiv:2006.02544); "raps", regularized adaptive ones, for many classes (Angelopoulos et al.
                2021, arXiv:2009.14193); "mondrian", label-conditional ones (Vovk 2012, arXiv:1209.2673): the scores of
                "lac" with a threshold for each class.

        Returns:
            Booleans of shape (B, C), true for members of the set; None if this coverage is not calibrated. A class
            without threshold, see `classes_without_threshold`, is a member of every set.
        """
        threshold = self.set_scores.get(method, {}).get(coverage)
        if threshold is None:
            return None
        by_class = threshold if isinstance(threshold, tuple) else (threshold,)
        threshold_C = np.array([math.inf if one is None else one for one in by_class])
        members_BC: Array = nonconformity_scores(probs_BC, uniform_B, method=method) <= threshold_C
        return members_BC

    def classes_without_threshold(self, coverage: float) -> list[int]:
        """Find the classes that every "mondrian" set contains, as too few calibration images are of these classes."""
        thresholds = self.set_scores.get("mondrian", {}).get(coverage)
        return [index for index, one in enumerate(thresholds) if one is None] if isinstance(thresholds, tuple) else []

    def is_answered(self, confidence_B: Array, *, risk: float) -> Array:
        """Decide which predictions to answer so that at most a fraction `risk` of the answers is wrong.

        Args:
            confidence_B: largest calibrated probability of each image.
            risk: one of `RISKS`.

        Returns:
            Booleans of shape (B,), true where the prediction is answered.
        """
        threshold = self.confidences[risk]
        return confidence_B >= (math.inf if threshold is None else threshold)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as the card stores them."""
        fields = asdict(self)
        fields["set_scores"] = {name: _with_text_keys(scores) for name, scores in self.set_scores.items()}
        return fields | {"confidences": _with_text_keys(self.confidences)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the fields written by `to_json`.

        Raises:
            ValueError: an entry is missing or invalid.
        """
        try:
            scores = fields["set_scores"]
            calibration = cls(
                estimator=_one_of(fields["estimator"], get_args(Estimator)),
                samples=int(fields["samples"]),
                temperature=float(fields["temperature"]),
                set_scores={
                    name: {level: _threshold(scores[name][str(level)], method=name) for level in COVERAGES}
                    for name in get_args(SetMethod)
                    if name in scores or name in _FIRST_METHODS
                },
                confidences={risk: optional_float(fields["confidences"][str(risk)]) for risk in RISKS},
                reference={name: [float(value) for value in values] for name, values in fields["reference"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a calibration, got one with a bad {error}") from error
        if not calibration.temperature > 0:
            raise ValueError(f"the temperature must be above 0, got {calibration.temperature}")
        return calibration


def find_calibration(calibrations: Sequence[Calibration], estimator: Estimator, samples: int) -> Calibration | None:
    """Find the calibration of an estimator with the largest number of masks that is at most `samples`, if any."""
    candidates = [one for one in calibrations if one.estimator == estimator and one.samples <= samples]
    return max(candidates, key=lambda one: one.samples, default=None)


def apply_temperature(probs_BC: Array, temperature: float) -> Array:
    """Divide the logarithms of probabilities (B, C) by a temperature, and normalize."""
    logs_BC = np.log(probs_BC + _EPSILON) / temperature
    powers_BC = np.exp(logs_BC - logs_BC.max(axis=1, keepdims=True, initial=-np.inf))
    tempered_BC: Array = powers_BC / powers_BC.sum(axis=1, keepdims=True)
    return tempered_BC


def nonconformity_scores(probs_BC: Array, uniform_B: Array, *, method: SetMethod) -> Array:
    """Compute the nonconformity score of each class, (B, C); see `Calibration.prediction_set`.

    "lac" and "mondrian": 1 - p. "aps": the sum of all larger probabilities plus a random fraction of the class's own.
    "raps": that plus `RAPS_PENALTY` for each rank below `RAPS_FREE_RANKS`.
    """
    if method not in RANDOM_METHODS:
        return 1 - probs_BC
    order_BC = np.argsort(-probs_BC, axis=1, kind="stable")
    sorted_BC = np.take_along_axis(probs_BC, order_BC, axis=1)
    sums_BC = np.cumsum(sorted_BC, axis=1) - sorted_BC * uniform_B[:, None]
    if method == "raps":
        rank_C = np.arange(1, probs_BC.shape[1] + 1)
        sums_BC += RAPS_PENALTY * np.maximum(rank_C - RAPS_FREE_RANKS, 0)
    scores_BC = np.empty_like(probs_BC)
    np.put_along_axis(scores_BC, order_BC, sums_BC, axis=1)
    return scores_BC


def _threshold(value: Any, *, method: SetMethod) -> Threshold:
    """Read what the card has for a method and coverage.

    Raises:
        TypeError, ValueError: it is neither a number nor null; for "mondrian", neither a list of these nor null.
    """
    if method != "mondrian" or value is None:
        return optional_float(value)
    if not isinstance(value, list):
        raise TypeError(f"entry: mondrian needs a list of numbers, got {type(value).__name__}")
    return tuple(map(optional_float, value))


def _with_text_keys(numbers: Mapping[float, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in numbers.items()}


def _one_of(value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"expected one of {', '.join(allowed)}, got {value!r}")
    return value


def optional_float(value: Any) -> float | None:
    """Read a number or null from the card.

    Raises:
        TypeError, ValueError: the value is neither.
    """
    return None if value is None else float(value)
