"""Decisions on predictions: calibrated probabilities, prediction sets, novelty, and whether to abstain."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from model import Artifact
from model.adaptive_conformal import adapt
from model.calibration import RANDOM_METHODS, Calibration, Estimator, SetMethod, find_calibration
from model.novelty import FeatureNovelty, View
from service.inference.pixels import Pixels
from service.inference.predictor import Prediction, Predictions

Reason = Literal["risk", "novelty"]

_NAMED_CLASSES = 5  # in a warning
_ROUNDING = 1e-3  # larger than the rounding error of any novelty score


@dataclass(frozen=True, kw_only=True)
class DecisionOptions:
    """The options of a decision.

    Attributes:
        coverage: probability with which the prediction set contains the true class.
        set_method: method that selects the classes of the prediction set.
        max_risk: maximum fraction of wrong answers among the answered predictions.
        false_alarm_rate: fraction of in-distribution images that may be flagged as novel.
    """

    coverage: float
    set_method: SetMethod
    max_risk: float
    false_alarm_rate: float


class Adaptation(NamedTuple):
    """How a threshold of prediction sets follows the feedback.

    Attributes:
        images: number of images with feedback so far.
        offset: by how much the calibrated threshold is moved, in log-odds.
    """

    images: int
    offset: float


class Adaptations(Protocol):
    """A source of the current adaptations."""

    def __call__(self, estimator: Estimator, method: SetMethod, coverage: float) -> Adaptation | None:
        """Return the adaptation of a threshold; None if it does not follow feedback."""


@dataclass(frozen=True, kw_only=True)
class NoveltyScore:
    """How unlike ordinary images an image is by the view with the highest score; above the threshold it is novel."""

    score: float
    threshold: float | None
    view: View

    @property
    def flagged(self) -> bool:
        """Whether the image counts as novel."""
        return self.threshold is not None and self.score > self.threshold


@dataclass(frozen=True, kw_only=True)
class NoveltyScores:
    """How unlike ordinary images B images are, see `NoveltyScore`.

    Attributes:
        views: scores (B,) by view.
        threshold: score above which an image counts as novel; None if the calibration has none.
    """

    views: Mapping[View, np.ndarray]
    threshold: float | None

    @property
    def score_B(self) -> np.ndarray:
        """The highest score of each image."""
        return np.asarray(np.max([*self.views.values()], axis=0))

    @property
    def flagged_B(self) -> np.ndarray:
        """Whether each image counts as novel."""
        return self.score_B > (math.inf if self.threshold is None else self.threshold)

    @property
    def view_B(self) -> list[View]:
        """The view with the highest score of each image."""
        names = [*self.views]
        return [names[index] for index in np.argmax([*self.views.values()], axis=0)]

    def each(self) -> list[NoveltyScore]:
        """Split into one score for each image."""
        return [
            NoveltyScore(score=score, threshold=self.threshold, view=view)
            for score, view in zip(self.score_B.tolist(), self.view_B, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A decision on one prediction; values that the model is not calibrated for are None.

    Attributes:
        calibration: calibration of the prediction's estimator.
        probabilities: calibrated probabilities in class order.
        prediction_set: names of the classes in the prediction set, most probable first.
        adaptation: how the set's threshold follows the feedback; None if it does not.
        confidence_threshold: minimum calibrated confidence of an answer.
        reason: reason to abstain; None to answer.
        novelty: novelty of the image.
        warnings: notes on parts of the decision that are not available.
    """

    calibration: Calibration | None
    probabilities: list[float] | None
    prediction_set: list[str] | None
    adaptation: Adaptation | None
    confidence_threshold: float | None
    reason: Reason | None
    novelty: NoveltyScore | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Decisions on B predictions of one estimator, see `Decision`.

    Attributes:
        calibration: calibration of the predictions' estimator.
        probs_BC: calibrated probabilities.
        sets: for each image, names of the classes in the prediction set, most probable first.
        adaptation: how the sets' threshold follows the feedback; None if it does not.
        confidence_threshold: minimum calibrated confidence of an answer.
        reasons: for each image, the reason to abstain; None to answer.
        novelty: novelty scores; None if the model has none.
        warnings: notes on parts of the decisions that are not available.
    """

    calibration: Calibration | None = None
    probs_BC: np.ndarray | None = None
    sets: Sequence[list[str]] | None = None
    adaptation: Adaptation | None = None
    confidence_threshold: float | None = None
    reasons: Sequence[Reason | None]
    novelty: NoveltyScores | None
    warnings: tuple[str, ...]

    def each(self) -> list[Decision]:
        """Split into one decision for each image."""
        missing = [None] * len(self.reasons)
        columns = (
            missing if self.probs_BC is None else self.probs_BC.tolist(),
            self.sets or missing,
            self.reasons,
            missing if self.novelty is None else self.novelty.each(),
        )
        return [
            Decision(
                calibration=self.calibration,
                probabilities=probabilities,
                prediction_set=members,
                adaptation=self.adaptation,
                confidence_threshold=self.confidence_threshold,
                reason=reason,
                novelty=novelty,
                warnings=self.warnings,
            )
            for probabilities, members, reason, novelty in zip(*columns, strict=True)
        ]


class DecisionPolicy:
    """Decides on predictions by the calibrations of the model.

    Args:
        artifact: the model.
        together: whether to score the novelty of all images at once, in a tenth of the time; the scores then differ
            by rounding from those of each image alone.
        adaptations: of the thresholds to feedback; None for the calibrated thresholds.
    """

    def __init__(self, artifact: Artifact, *, together: bool = False, adaptations: Adaptations | None = None) -> None:
        self._classes, self._together = artifact.classes, together
        self._adaptations = adaptations
        self._calibrations = artifact.calibrations
        self._artifact = artifact

    def calibration(self, predicted: Prediction | Predictions) -> Calibration | None:
        """The calibration for the estimator and number of masks of predictions; None if there is none."""
        return find_calibration(self._calibrations, predicted.estimator, predicted.samples)

    def decide(self, predictions: Predictions, pixels_BHW: Pixels, options: DecisionOptions, *, seed: int) -> Decisions:
        """Decide on each prediction; equal predictions, pixels, seeds and adaptations give equal decisions.

        Args:
            predictions: predictions for the images.
            pixels_BHW: the images, (B, H, W) or (B, H, W, 3).
            options: options of the decisions.
            seed: random seed of the prediction sets of `RANDOM_METHODS`.
        """
        calibration = self.calibration(predictions)
        novelty = self._novelties(pixels_BHW, options)
        is_novel_B = np.zeros(len(pixels_BHW), bool) if novelty is None else novelty.flagged_B
        has_no_threshold = novelty is not None and novelty.threshold is None
        no_flags = f"a false_alarm_rate of {options.false_alarm_rate:g} is not calibrated: no image is flagged as novel"
        if calibration is None:
            not_calibrated = self._not_calibrated(predictions.estimator, predictions.samples)
            return Decisions(
                reasons=["novelty" if is_novel else None for is_novel in is_novel_B.tolist()],
                novelty=novelty,
                warnings=(not_calibrated, no_flags) if has_no_threshold else (not_calibrated,),
            )
        probs_BC = calibration.probabilities(predictions.probs_BC)
        adaptation = None
        if self._adaptations is not None:
            adaptation = self._adaptations(predictions.estimator, options.set_method, options.coverage)
        sets = self._sets(calibration, adaptation, probs_BC, pixels_BHW, options, seed)
        is_answered_B = calibration.is_answered(probs_BC.max(axis=1), risk=options.max_risk)
        confidence_threshold = calibration.confidences[options.max_risk]
        unlimited = calibration.classes_without_threshold(options.coverage) if options.set_method == "mondrian" else []
        missing = (
            (sets is None, f"a coverage of {options.coverage:g} is not calibrated for set_method={options.set_method}"),
            (bool(unlimited), self._too_few_images(unlimited)),
            (
                confidence_threshold is None,
                f"a max_risk of {options.max_risk:g} can't be guaranteed: each image is left to a person",
            ),
            (has_no_threshold, no_flags),
        )
        return Decisions(
            calibration=calibration,
            probs_BC=probs_BC,
            sets=sets,
            adaptation=None if sets is None else adaptation,
            confidence_threshold=confidence_threshold,
            reasons=[
                "novelty" if is_novel else None if is_answered else "risk"
                for is_novel, is_answered in zip(is_novel_B.tolist(), is_answered_B.tolist(), strict=True)
            ],
            novelty=novelty,
            warnings=tuple(warning for is_missing, warning in missing if is_missing),
        )

    def _sets(
        self,
        calibration: Calibration,
        adaptation: Adaptation | None,
        probs_BC: np.ndarray,
        pixels_BHW: Pixels,
        options: DecisionOptions,
        seed: int,
    ) -> list[list[str]] | None:
        if adaptation is not None:
            calibration = adapt(calibration, adaptation.offset, coverage=options.coverage, method=options.set_method)
        is_random = options.set_method in RANDOM_METHODS
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

    def _too_few_images(self, unlimited: Sequence[int]) -> str:
        named = ", ".join(self._classes[index] for index in unlimited[:_NAMED_CLASSES])
        more = f" and {len(unlimited) - _NAMED_CLASSES} more" if len(unlimited) > _NAMED_CLASSES else ""
        return f"each set contains {named}{more}: too few calibration images of these classes for this coverage"

    def _novelties(self, pixels_BHW: Pixels, options: DecisionOptions) -> NoveltyScores | None:
        """Novelty scores of the images; None if they are not available."""
        novelty, chain = self._artifact.novelty, self._artifact.chain
        if novelty is None:
            return None
        threshold = novelty.thresholds[options.false_alarm_rate]
        images_B = self._artifact.input.normalize(pixels_BHW)
        if isinstance(novelty, FeatureNovelty):
            probs_BC, features_BF = self._artifact.engine.predict_with_features(images_B)
            return NoveltyScores(views=novelty.views(features_BF, probs_BC, images_B), threshold=threshold)
        if chain is None:
            return None
        views: dict[View, np.ndarray] = {view: np.empty(len(images_B)) for view in novelty.view_names}
        inexact_B = np.ones(len(images_B), bool)
        if self._together:
            views = novelty.views(chain, images_B)
            score_B = NoveltyScores(views=views, threshold=threshold).score_B
            inexact_B = np.abs(score_B - (math.inf if threshold is None else threshold)) < _ROUNDING
        for index in np.flatnonzero(inexact_B):  # rounding must not move an image across the threshold
            for view, score_1 in novelty.views_alone(chain, images_B[index : index + 1]).items():
                views[view][index] = score_1[0]
        return NoveltyScores(views=views, threshold=threshold)

    def _not_calibrated(self, estimator: Estimator, samples: int) -> str:
        calibrated = [str(one.samples) for one in self._calibrations if one.estimator == estimator]
        if not calibrated:
            return "the model has no calibration: probabilities are raw, and there is no prediction set"
        return f"{samples} masks are not calibrated, {calibrated[0]} and more are: probabilities are raw, without a set"


def _uniform(pixels: Pixels, seed: int) -> float:
    """A pseudorandom number in [0, 1) that depends only on pixels and seed."""
    digest = hashlib.blake2b(pixels.tobytes() + seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
