"""Coverage of prediction sets by feedback: what it was, thresholds that follow it, and evidence that it fell."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from model.adaptive_conformal import METHODS, move_threshold, next_offsets
from model.calibration import COVERAGES, Calibration, nonconformity_scores
from model.chain import Array
from model.martingale import ODDS, next_evidence, tolerated_miss

WINDOW = 500  # images over which the measured coverage is averaged, with weights that fall exponentially
_LEVELS_L = np.array(COVERAGES)
_SHAPE_ML = (len(METHODS), len(COVERAGES))


@dataclass(frozen=True, kw_only=True, eq=False)
class Coverage:
    """The state of one estimator after a number of images with feedback; M methods, L coverages, K bets.

    Attributes:
        images: number of images.
        static_ML: part of the sets by the calibrated thresholds that contained the true class, over the last `WINDOW`
            images.
        adaptive_ML: the same of the sets by the moved thresholds.
        offsets_ML: by how much the thresholds are moved, in log-odds.
        evidence_MLK: evidence that the static sets lost their coverage, see `model.martingale`.
    """

    images: int
    static_ML: Array
    adaptive_ML: Array
    offsets_ML: Array
    evidence_MLK: Array

    @classmethod
    def start(cls) -> Self:
        """The state before any image."""
        return cls(
            images=0,
            **{name: np.zeros(_SHAPE_ML) for name in ("static_ML", "adaptive_ML", "offsets_ML")},
            evidence_MLK=np.zeros((*_SHAPE_ML, len(ODDS))),
        )

    def after(self, score_M: Array, thresholds_ML: Array, tolerated_L: Array) -> Self:
        """The state after one more image.

        Args:
            score_M: nonconformity score of the true class by each method.
            thresholds_ML: calibrated thresholds; NaN where there is none.
            tolerated_L: probability of a miss that the calibration tolerates, see `model.martingale.tolerated_miss`;
                NaN not to test.
        """
        moved_ML = np.array(
            [
                [move_threshold(threshold, offset) for threshold, offset in zip(*row, strict=True)]
                for row in zip(thresholds_ML.tolist(), self.offsets_ML.tolist(), strict=True)
            ]
        )
        static_ML, adaptive_ML = (score_M[:, None] <= found for found in (thresholds_ML, moved_ML))
        weight = 1 / min(self.images + 1, WINDOW)
        known_ML = ~np.isnan(thresholds_ML)
        tested_ML = known_ML & ~np.isnan(tolerated_L)
        return type(self)(
            images=self.images + 1,
            static_ML=self.static_ML + weight * (static_ML - self.static_ML),
            adaptive_ML=self.adaptive_ML + weight * (adaptive_ML - self.adaptive_ML),
            offsets_ML=np.where(known_ML, next_offsets(self.offsets_ML, ~adaptive_ML, _LEVELS_L), 0.0),
            evidence_MLK=np.where(
                tested_ML[..., None],
                next_evidence(self.evidence_MLK, ~static_ML, np.nan_to_num(tolerated_L), image=self.images),
                0.0,
            ),
        )

    def evidence(self, tested_ML: Array) -> float:
        """Mean evidence over the bets on the tested sets (booleans); NaN without any.

        It ever reaches 1 / a with a probability of at most a as long as the coverage holds.
        """
        return float(self.evidence_MLK[tested_ML].mean()) if tested_ML.any() else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON stores them."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the fields written by `to_json`.

        Raises:
            ValueError: a field is missing, has another shape or is not finite.
        """
        start = cls.start()
        try:
            images = int(fields["images"])
            arrays = {name: np.array(fields[name], float) for name, value in vars(start).items() if name != "images"}
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"expected a state of the coverage, got one with a bad {error}") from error
        for name, array in arrays.items():
            expected = getattr(start, name).shape
            if array.shape != expected or not np.isfinite(array).all():
                raise ValueError(f"{name} must be {expected} finite numbers, got shape {array.shape}")
        if images < 0:
            raise ValueError(f"images must be 0 or more, got {images}")
        return cls(images=images, **arrays)


def thresholds(calibration: Calibration) -> Array:
    """Thresholds of a calibration by method and coverage, (M, L); NaN where it has none."""
    return np.array(
        [
            [math.nan if (score := calibration.set_scores[method][level]) is None else score for level in COVERAGES]
            for method in METHODS
        ]
    )


def tolerated_misses(images: int | None) -> Array:
    """`model.martingale.tolerated_miss` at each coverage, (L,).

    Args:
        images: number of calibration images; None if it is not known, which gives NaN.
    """
    return np.array(
        [
            math.nan if images is None or images + 1 <= 1 / (1 - level) else tolerated_miss(level, images=images)
            for level in COVERAGES
        ]
    )


def true_scores(probs_C: Array, true_class: int, *, uniform: float) -> Array:
    """Nonconformity score of the true class of an image by each method, (M,).

    Args:
        probs_C: calibrated probabilities.
        true_class: index of the true class.
        uniform: random number in [0, 1) of the image, for "aps".
    """
    uniform_B = np.array([uniform])
    return np.array(
        [nonconformity_scores(probs_C[None], uniform_B, method=method)[0, true_class] for method in METHODS]
    )
