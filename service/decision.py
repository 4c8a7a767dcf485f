"""What to make of a prediction: calibrated probabilities, the classes that may be true, and whether to abstain."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model import Artifact
from model.calibration import Calibration, Estimator, SetMethod, find_calibration
from model.chain import Chain
from service.images import Pixels
from service.predictor import ESTIMATORS, Prediction

Reason = Literal["risk", "novelty"]


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

    def decide(self, prediction: Prediction, pixels: Pixels, demands: Demands, *, seed: int) -> Decision:
        """Decide on the prediction of pixels (28, 28); the same ones and the same seed give the same decision."""
        calibration = self.calibration(prediction)
        novelty = self._score(pixels, demands)
        reason: Reason | None = "novelty" if novelty is not None and novelty.flagged else None
        if calibration is None:
            return Decision(
                calibration=None,
                probabilities=None,
                prediction_set=None,
                least_confidence=None,
                reason=reason,
                novelty=novelty,
                warnings=(self._missing(ESTIMATORS[prediction.mode], prediction.samples),),
            )
        probs_BC = calibration.probabilities(np.array([prediction.probabilities]))
        if reason is None and not calibration.is_answered(float(probs_BC.max()), risk=demands.max_risk):
            reason = "risk"
        members = self._members(calibration, probs_BC, pixels, demands, seed)
        return Decision(
            calibration=calibration,
            probabilities=probs_BC[0].tolist(),
            prediction_set=members,
            least_confidence=calibration.confidences[demands.max_risk],
            reason=reason,
            novelty=novelty,
            warnings=() if members is not None else (f"a coverage of {demands.coverage:g} is not calibrated",),
        )

    def _members(
        self, calibration: Calibration, probs_BC: np.ndarray, pixels: Pixels, demands: Demands, seed: int
    ) -> list[str] | None:
        uniform_B = np.array([_uniform(pixels, seed)])
        in_set_BC = calibration.prediction_set(
            probs_BC, uniform_B, coverage=demands.coverage, method=demands.set_method
        )
        if in_set_BC is None:
            return None
        return [self._classes[index] for index in np.argsort(-probs_BC[0], kind="stable") if in_set_BC[0, index]]

    def _score(self, pixels: Pixels, demands: Demands) -> NoveltyScore | None:
        if self._novelty is None:
            return None
        images_B = pixels[None, None].astype(np.float32) / np.float32(255)
        score = float(self._novelty.score(self._chain, images_B)[0])
        return NoveltyScore(score=score, threshold=self._novelty.thresholds[demands.false_alarm_rate])

    def _missing(self, estimator: Estimator, samples: int) -> str:
        known = [str(one.samples) for one in self._calibrations if one.estimator == estimator]
        if not known:
            return "the model has no calibration: probabilities are raw, and there is no prediction set"
        return f"{samples} masks are not calibrated, {known[0]} and more are: probabilities are raw, without a set"


def _uniform(pixels: Pixels, seed: int) -> float:
    """A number in [0, 1) that nothing but pixels and seed decide."""
    digest = hashlib.blake2b(pixels.tobytes() + seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
