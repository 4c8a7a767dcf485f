"""Probabilities, prediction sets and abstention that mean what they say.

`training.calibrate` fits them on images that training has not seen, the card keeps them, and they are applied here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np

from model.chain import Array

Estimator = Literal["eval", "masks", "moments"]
SetMethod = Literal["lac", "aps"]

COVERAGES = (0.8, 0.9, 0.95, 0.99)
RISKS = (0.01, 0.02, 0.05)
SAMPLES = (10, 30, 100, 300, 1000)  # numbers of masks that are calibrated
_SMALLEST = 1e-30  # added to probabilities before logarithms are taken


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted to one estimator's class probabilities; of no use with another's.

    Attributes:
        estimator: "eval", "masks" or "moments".
        samples: number of masks, 0 where nothing is sampled.
        temperature: divides the logarithms of the probabilities (Guo et al. 2017, arXiv:1706.04599), after averaging.
        set_scores: by method and coverage, the largest score of a class in the prediction set; None where there were
            too few images to know.
        confidences: by risk, the smallest confidence that is answered, or None where none is high enough.
        reference: quantiles, at even steps from 0 to 1, of "predictive_entropy" and "mutual_information" in nats,
            before the temperature: what drift is measured against.
    """

    estimator: Estimator
    samples: int
    temperature: float
    set_scores: Mapping[SetMethod, Mapping[float, float | None]]
    confidences: Mapping[float, float | None]
    reference: Mapping[str, Sequence[float]]

    def probabilities(self, probs_BC: Array) -> Array:
        """Calibrate mean probabilities (B, C)."""
        return tempered(probs_BC, self.temperature)

    def prediction_set(self, probs_BC: Array, uniform_B: Array, *, coverage: float, method: SetMethod) -> Array | None:
        """Tell which classes belong to the set, (B, C), that holds the true one with a probability of `coverage`.

        None if that was not calibrated.

        The promise is for images like those of the calibration, over all of them (split conformal prediction: Vovk et
        al. 2005; Lei et al. 2018, doi:10.1080/01621459.2017.1307116). A set may be empty: no class is likely enough.

        Args:
            probs_BC: calibrated probabilities.
            uniform_B: random numbers in [0, 1), one for each image; of use to "aps" only.
            coverage: one of `COVERAGES`.
            method: "lac", least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451), or "aps", adaptive ones
                (Romano et al. 2020, arXiv:2006.02544).
        """
        largest = self.set_scores[method][coverage]
        return None if largest is None else set_scores(probs_BC, uniform_B, method=method) <= largest

    def is_answered(self, confidence_B: Array, *, risk: float) -> Array:
        """Tell which of so sure predictions are answered, (B,), if at most a part `risk` of these may be wrong."""
        least = self.confidences[risk]
        return confidence_B >= (math.inf if least is None else least)

    def to_json(self) -> dict[str, Any]:
        """For the card."""
        fields = asdict(self)
        fields["set_scores"] = {name: _with_text_keys(scores) for name, scores in self.set_scores.items()}
        return fields | {"confidences": _with_text_keys(self.confidences)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: something is missing or not what it should be.
        """
        try:
            calibration = cls(
                estimator=_one_of(fields["estimator"], get_args(Estimator)),
                samples=int(fields["samples"]),
                temperature=float(fields["temperature"]),
                set_scores={
                    name: {level: optional(fields["set_scores"][name][str(level)]) for level in COVERAGES}
                    for name in get_args(SetMethod)
                },
                confidences={risk: optional(fields["confidences"][str(risk)]) for risk in RISKS},
                reference={name: [float(value) for value in values] for name, values in fields["reference"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a calibration, got one with a bad {error}") from error
        if not calibration.temperature > 0:
            raise ValueError(f"the temperature must be above 0, got {calibration.temperature}")
        return calibration


def find_calibration(calibrations: Sequence[Calibration], estimator: Estimator, samples: int) -> Calibration | None:
    """The calibration of an estimator: for masks, that of the largest calibrated number not above `samples`, if any."""
    fitting = [one for one in calibrations if one.estimator == estimator and one.samples <= samples]
    return max(fitting, key=lambda one: one.samples, default=None)


def tempered(probs_BC: Array, temperature: float) -> Array:
    """Divide the logarithms of probabilities (B, C) by a temperature, and normalise."""
    logs_BC = np.log(probs_BC + _SMALLEST) / temperature
    powers_BC = np.exp(logs_BC - logs_BC.max(axis=1, keepdims=True, initial=-np.inf))
    tempered_BC: Array = powers_BC / powers_BC.sum(axis=1, keepdims=True)
    return tempered_BC


def set_scores(probs_BC: Array, uniform_B: Array, *, method: SetMethod) -> Array:
    """Score how little each class (B, C) conforms with calibrated probabilities, see `Calibration.prediction_set`.

    "lac": 1 - p. "aps": the sum of all larger probabilities, and a random part of its own.
    """
    if method == "lac":
        return 1 - probs_BC
    order_BC = np.argsort(-probs_BC, axis=1, kind="stable")
    sorted_BC = np.take_along_axis(probs_BC, order_BC, axis=1)
    sums_BC = np.cumsum(sorted_BC, axis=1) - sorted_BC * uniform_B[:, None]
    scores_BC = np.empty_like(probs_BC)
    np.put_along_axis(scores_BC, order_BC, sums_BC, axis=1)
    return scores_BC


def _with_text_keys(numbers: Mapping[float, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in numbers.items()}


def _one_of(value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"expected one of {', '.join(allowed)}, got {value!r}")
    return value


def optional(value: Any) -> float | None:
    """Read a number or null of the card, a TypeError or ValueError if it is neither."""
    return None if value is None else float(value)
