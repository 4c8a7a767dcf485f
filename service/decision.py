"""What to make of a prediction: calibrated probabilities, the classes that may be true, and whether to abstain."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model import Artifact
from model.calibration import Calibration, Estimator, SetMethod, find_calibration
from model.chain import Chain
from service.images import Pixels
from service.predictor import ESTIMATORS, Prediction

Reason = Literal["risk", "novelty"]

_ROUNDING = 1e-3  # more than that of any score


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a client demands of a decision.

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


class Decider:
    """Decides by what was calibrated for the model.

    Args:
        artifact: the model.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._classes = artifact.classes
        self._calibrations = artifact.calibrations
        self._novelty = artifact.novelty
        self._chain = Chain(artifact.network)

    def calibration(self, prediction: Prediction) -> Calibration | None:
        """That of a prediction's estimator, if there is one."""
        return find_calibration(self._calibrations, ESTIMATORS[prediction.mode], prediction.samples)

    def decide(
        self, predictions: Sequence[Prediction], pixels_BHW: Pixels, demands: Demands, *, seed: int
    ) -> list[Decision]:
        """Decide on each prediction of pixels (B, 28, 28); the same ones and the same seed give the same decision.

        Args:
            predictions: all of one mode and number of samples.
            pixels_BHW: what they are of.
            demands: on the decisions.
            seed: of the random part of adaptive prediction sets.
        """
        calibration = self.calibration(predictions[0])
        novelties = self._novelties(pixels_BHW, demands)
        if calibration is None:
            missing = self._missing(ESTIMATORS[predictions[0].mode], predictions[0].samples)
            return [_uncalibrated(novelty, missing) for novelty in novelties]
        probs_BC = calibration.probabilities(np.array([prediction.probabilities for prediction in predictions]))
        sets = self._sets(calibration, probs_BC, pixels_BHW, demands, seed)
        least = calibration.confidences[demands.max_risk]
        unset = (f"a coverage of {demands.coverage:g} is not calibrated",)
        return [
            Decision(
                calibration=calibration,
                probabilities=probabilities,
                prediction_set=members,
                least_confidence=least,
                reason=_novel(novelty)
                or (None if calibration.is_answered(max(probabilities), risk=demands.max_risk) else "risk"),
                novelty=novelty,
                warnings=() if members is not None else unset,
            )
            for probabilities, members, novelty in zip(probs_BC.tolist(), sets, novelties, strict=True)
        ]

    def _sets(
        self, calibration: Calibration, probs_BC: np.ndarray, pixels_BHW: Pixels, demands: Demands, seed: int
    ) -> Sequence[list[str] | None]:
        uniform_B = np.array([_uniform(pixels, seed) for pixels in pixels_BHW])
        in_set_BC = calibration.prediction_set(
            probs_BC, uniform_B, coverage=demands.coverage, method=demands.set_method
        )
        if in_set_BC is None:
            return [None] * len(probs_BC)
        order_BC = np.argsort(-probs_BC, axis=1, kind="stable")
        return [
            [self._classes[index] for index in order if is_in_set[index]]
            for order, is_in_set in zip(order_BC.tolist(), in_set_BC.tolist(), strict=True)
        ]

    def _novelties(self, pixels_BHW: Pixels, demands: Demands) -> Sequence[NoveltyScore | None]:
        if self._novelty is None:
            return [None] * len(pixels_BHW)
        threshold = self._novelty.thresholds[demands.false_alarm_rate]
        images_B = pixels_BHW[:, None].astype(np.float32) / np.float32(255)
        scores: list[float] = self._novelty.score(self._chain, images_B).tolist()
        if threshold is not None and len(scores) > 1:
            near = [index for index, score in enumerate(scores) if abs(score - threshold) < _ROUNDING]
            for index in near:  # on the side of it on which the image is alone
                scores[index] = self._novelty.score(self._chain, images_B[index : index + 1]).item()
        return [NoveltyScore(score=score, threshold=threshold) for score in scores]

    def _missing(self, estimator: Estimator, samples: int) -> str:
        known = [str(one.samples) for one in self._calibrations if one.estimator == estimator]
        if not known:
            return "the model has no calibration: probabilities are raw, and there is no prediction set"
        return f"{samples} masks are not calibrated, {known[0]} and more are: probabilities are raw, without a set"


def _novel(novelty: NoveltyScore | None) -> Reason | None:
    return "novelty" if novelty is not None and novelty.flagged else None


def _uncalibrated(novelty: NoveltyScore | None, why: str) -> Decision:
    return Decision(
        calibration=None,
        probabilities=None,
        prediction_set=None,
        least_confidence=None,
        reason=_novel(novelty),
        novelty=novelty,
        warnings=(why,),
    )


def _uniform(pixels: Pixels, seed: int) -> float:
    """A number in [0, 1) that nothing but pixels and seed decide."""
    digest = hashlib.blake2b(pixels.tobytes() + seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
