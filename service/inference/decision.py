"""What to make of a prediction: calibrated probabilities, the classes that may be true, and whether to abstain."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model import Artifact
from model.calibration import Calibration, Estimator, SetMethod, find_calibration
from model.chain import Chain
from service.inference.pixels import Pixels
from service.inference.predictor import Prediction, Predictions

Reason = Literal["risk", "novelty"]

_ROUNDING = 1e-3  # more than that of any score


@dataclass(frozen=True, kw_only=True)
class DecisionOptions:
    """What a client asks of a decision.

    Attributes:
        coverage: how often the prediction set shall hold the true class.
        set_method: which classes it is made of.
        max_risk: the part of wrong ones among answered predictions that is accepted.
        false_alarm_rate: the part of ordinary images that may be taken for novel.
    """

    coverage: float
    set_method: SetMethod
    max_risk: float
    false_alarm_rate: float


@dataclass(frozen=True, kw_only=True)
class NoveltyScore:
    """How unlike the training's an image is, and from which score on it counts as novel."""

    score: float
    threshold: float | None

    @property
    def flagged(self) -> bool:
        """Whether it counts as novel."""
        return self.threshold is not None and self.score > self.threshold


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A decision on one prediction; None is what the model was not calibrated for.

    Attributes:
        calibration: that of the prediction's estimator.
        probabilities: calibrated, in class order.
        prediction_set: names of the classes that may be true, most probable first.
        least_confidence: what the calibrated confidence must be for an answer.
        reason: why to abstain; None if there is no reason.
        novelty: of the image.
        warnings: what could not be decided.
    """

    calibration: Calibration | None
    probabilities: list[float] | None
    prediction_set: list[str] | None
    least_confidence: float | None
    reason: Reason | None
    novelty: NoveltyScore | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Decisions on B predictions made in one way, see `Decision`.

    Attributes:
        calibration: that of the predictions' estimator.
        probs_BC: calibrated.
        sets: names of the classes that may be true of each, most probable first.
        least_confidence: what the calibrated confidence must be for an answer.
        reasons: why to abstain from each.
        novelty_B: scores.
        novelty_threshold: from which score on an image counts as novel.
        warnings: what could not be decided of any.
    """

    calibration: Calibration | None = None
    probs_BC: np.ndarray | None = None
    sets: Sequence[list[str]] | None = None
    least_confidence: float | None = None
    reasons: Sequence[Reason | None]
    novelty_B: np.ndarray | None
    novelty_threshold: float | None
    warnings: tuple[str, ...]

    def each(self) -> list[Decision]:
        """Tell of each image alone."""
        missing = [None] * len(self.reasons)
        columns = (
            missing if self.probs_BC is None else self.probs_BC.tolist(),
            self.sets or missing,
            self.reasons,
            missing if self.novelty_B is None else self.novelty_B.tolist(),
        )
        return [
            Decision(
                calibration=self.calibration,
                probabilities=probabilities,
                prediction_set=members,
                least_confidence=self.least_confidence,
                reason=reason,
                novelty=None if score is None else NoveltyScore(score=score, threshold=self.novelty_threshold),
                warnings=self.warnings,
            )
            for probabilities, members, reason, score in zip(*columns, strict=True)
        ]


class DecisionPolicy:
    """Decides by what was calibrated for the model.

    Args:
        artifact: the model.
        together: whether to score the novelty of all images at once, in a tenth of the time; scores then differ from
            those of each alone by rounding.
    """

    def __init__(self, artifact: Artifact, *, together: bool = False) -> None:
        self._classes, self._together = artifact.classes, together
        self._calibrations = artifact.calibrations
        self._novelty = artifact.novelty
        self._chain = Chain(artifact.network)

    def calibration(self, predicted: Prediction | Predictions) -> Calibration | None:
        """That of an estimator, if there is one."""
        return find_calibration(self._calibrations, predicted.estimator, predicted.samples)

    def decide(self, predictions: Predictions, pixels_BHW: Pixels, options: DecisionOptions, *, seed: int) -> Decisions:
        """Decide on each prediction; the same ones, pixels and seed give the same decisions.

        Args:
            predictions: of the pixels.
            pixels_BHW: (B, 28, 28).
            options: on the decisions.
            seed: of the random part of adaptive prediction sets.
        """
        calibration = self.calibration(predictions)
        novelty_B, threshold = self._novelties(pixels_BHW, options)
        is_novel_B = np.zeros(len(pixels_BHW), bool)
        if novelty_B is not None and threshold is not None:
            is_novel_B = novelty_B > threshold
        if calibration is None:
            return Decisions(
                reasons=["novelty" if is_novel else None for is_novel in is_novel_B.tolist()],
                novelty_B=novelty_B,
                novelty_threshold=threshold,
                warnings=(self._missing(predictions.estimator, predictions.samples),),
            )
        probs_BC = calibration.probabilities(predictions.probs_BC)
        sets = self._sets(calibration, probs_BC, pixels_BHW, options, seed)
        is_answered_B = calibration.is_answered(probs_BC.max(axis=1), risk=options.max_risk)
        unset = (f"a coverage of {options.coverage:g} is not calibrated",)
        return Decisions(
            calibration=calibration,
            probs_BC=probs_BC,
            sets=sets,
            least_confidence=calibration.confidences[options.max_risk],
            reasons=[
                "novelty" if is_novel else None if is_answered else "risk"
                for is_novel, is_answered in zip(is_novel_B.tolist(), is_answered_B.tolist(), strict=True)
            ],
            novelty_B=novelty_B,
            novelty_threshold=threshold,
            warnings=unset if sets is None else (),
        )

    def _sets(
        self, calibration: Calibration, probs_BC: np.ndarray, pixels_BHW: Pixels, options: DecisionOptions, seed: int
    ) -> list[list[str]] | None:
        is_random = options.set_method == "aps"
        uniform_B = np.array([_uniform(pixels, seed) if is_random else 0.0 for pixels in pixels_BHW])
        in_set_BC = calibration.prediction_set(
            probs_BC, uniform_B, coverage=options.coverage, method=options.set_method
        )
        if in_set_BC is None:
            return None
        order_BC = np.argsort(-probs_BC, axis=1, kind="stable")
        return [
            [self._classes[index] for index in order if is_in_set[index]]
            for order, is_in_set in zip(order_BC.tolist(), in_set_BC.tolist(), strict=True)
        ]

    def _novelties(self, pixels_BHW: Pixels, options: DecisionOptions) -> tuple[np.ndarray | None, float | None]:
        """Score each image; tell the threshold too."""
        if self._novelty is None:
            return None, None
        threshold = self._novelty.thresholds[options.false_alarm_rate]
        images_B = pixels_BHW[:, None].astype(np.float32) / np.float32(255)
        scores_B = np.empty(len(images_B))
        unsure_B = np.ones(len(images_B), bool)
        if self._together:
            scores_B[:] = self._novelty.score(self._chain, images_B)
            unsure_B = np.abs(scores_B - (math.inf if threshold is None else threshold)) < _ROUNDING
        for index in np.flatnonzero(unsure_B):  # on the side of the threshold on which the image is alone
            scores_B[index] = self._novelty.score_alone(self._chain, images_B[index : index + 1])
        return scores_B, threshold

    def _missing(self, estimator: Estimator, samples: int) -> str:
        known = [str(one.samples) for one in self._calibrations if one.estimator == estimator]
        if not known:
            return "the model has no calibration: probabilities are raw, and there is no prediction set"
        return f"{samples} masks are not calibrated, {known[0]} and more are: probabilities are raw, without a set"


def _uniform(pixels: Pixels, seed: int) -> float:
    """A number in [0, 1) that nothing but pixels and seed decide."""
    digest = hashlib.blake2b(pixels.tobytes() + seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
