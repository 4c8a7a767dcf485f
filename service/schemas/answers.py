"""Schemas of answers."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from model import Moments, Uncertainty
from model.calibration import Estimator
from model.novelty import View
from service.inference.decision import Decision, Reason
from service.inference.predictor import Prediction
from service.inference.preparation import Input
from service.schemas.parameters import Parameters, RankBy
from service.schemas.problems import Problem

_ALL_UP_TO, _LISTED_OF_MANY = 20, 10  # classes in the lists of an answer

Mode = Literal["eval", "mc", "moments"]
# Name of each estimator in answers, metrics and model cards.
MODES: dict[Estimator, Mode] = {"eval": "eval", "masks": "mc", "moments": "moments"}


PixelLists = list[list[int]] | list[list[list[int]]]


class UncertaintyAnswer(BaseModel):
    """The uncertainty over the dropout masks: entropies in nats, lists in class order.

    The standard error is null with `method=moments`, which does not sample.
    """

    variance: list[float]
    standard_error: list[float] | None
    predictive_entropy: float
    expected_entropy: float
    mutual_information: float


class PreprocessingAnswer(BaseModel):
    """The preprocessing steps of the image; `image_hash` is the hash of the network's input.

    `pixels`, if requested, are the network's input: its rows of values 0..255, or of three values each in colour.
    """

    source: str
    width: int
    height: int
    inverted: bool
    steps: list[str]
    image_hash: str
    pixels: Annotated[PixelLists | None, Field(exclude_if=lambda value: value is None)] = None


class CalibrationAnswer(BaseModel):
    """The calibration of probabilities, prediction set and abstention; 0 samples if nothing is sampled."""

    estimator: Estimator
    samples: int


class AdaptiveAnswer(BaseModel):
    """How the threshold of the prediction set follows the feedback: after how many images, and how far it has moved.

    The offset is in log-odds of the nonconformity score; sets are larger where it is positive.
    """

    images: int
    offset: float


class NoveltyAnswer(BaseModel):
    """How unlike ordinary images the image is; `flagged` if the score is above the threshold.

    The threshold is null if the calibration images were too few for it. `view` names the view with the highest score:
    `appearance` (brightness and contrast), `features` (what the network's layers compute), or `pose`.
    """

    score: float
    threshold: float | None
    flagged: bool
    view: View


class Answer(BaseModel):
    """A prediction. `uncertainty` is null in eval mode; values that the model is not calibrated for are null.

    `sample_probabilities`, if requested, are the uncalibrated class probabilities of each mask. Lists by class are in
    class order; if they have the most probable classes only, `classes` names these, the most probable first.
    `adaptive` is there if prediction sets follow the feedback.
    """

    label: str
    class_index: int
    confidence: float
    probabilities: list[float]
    mode: Mode
    samples: int
    seed: int
    uncertainty: UncertaintyAnswer | None
    calibrated: bool
    calibration: CalibrationAnswer | None
    prediction_set: list[str] | None
    coverage: float
    abstain: bool
    abstain_reason: Reason | None
    abstain_threshold: float | None
    max_risk: float
    novelty: NoveltyAnswer | None
    preprocessing: PreprocessingAnswer
    warnings: list[str]
    sample_probabilities: Annotated[list[list[float]] | None, Field(exclude_if=lambda value: value is None)] = None
    classes: Annotated[list[str] | None, Field(exclude_if=lambda value: value is None)] = None
    adaptive: Annotated[AdaptiveAnswer | None, Field(exclude_if=lambda value: value is None)] = None

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        decision: Decision,
        image: Input,
        parameters: Parameters,
        classes: Sequence[str],
    ) -> Self:
        """Combine the results of the stages."""
        width, height = image.size
        calibrated = decision.probabilities if parameters.calibrated else None
        probabilities = prediction.probabilities if calibrated is None else calibrated
        listed = _listed(probabilities, parameters.top_k)
        return cls(
            label=prediction.label,
            class_index=prediction.class_index,
            confidence=probabilities[prediction.class_index],
            probabilities=_of_classes(probabilities, listed),
            mode=MODES[prediction.estimator],
            samples=prediction.samples,
            seed=parameters.seed,
            uncertainty=_uncertainty_answer(prediction.uncertainty, listed),
            calibrated=calibrated is not None,
            calibration=_calibration_answer(decision),
            prediction_set=decision.prediction_set,
            coverage=parameters.coverage,
            abstain=decision.reason is not None,
            abstain_reason=decision.reason,
            abstain_threshold=decision.confidence_threshold,
            max_risk=parameters.max_risk,
            novelty=_novelty_answer(decision),
            preprocessing=PreprocessingAnswer(
                source=image.source,
                width=width,
                height=height,
                inverted=image.inverted,
                steps=list(image.steps),
                image_hash=image.image_hash,
                pixels=image.pixels.tolist() if parameters.return_pixels else None,
            ),
            warnings=[*image.warnings, *prediction.warnings, *decision.warnings],
            sample_probabilities=_sample_probabilities(prediction, listed) if parameters.return_samples else None,
            classes=None if listed is None else [classes[index] for index in listed],
            adaptive=None if decision.adaptation is None else AdaptiveAnswer(**decision.adaptation._asdict()),
        )


class Refusal(BaseModel):
    """The problem with an image, in place of its answer."""

    error: dict[str, Any]


class BatchAnswer(BaseModel):
    """The answer for each image, or the problem with it, in the order of the request."""

    results: list[Answer | Refusal]

    @classmethod
    def of(cls, results: Iterable[Answer | Problem]) -> Self:
        """Combine the results of all images."""
        return cls(results=[_result(one) for one in results])

    @staticmethod
    def encode(results: Iterable[Answer | Problem]) -> bytes:
        """Encode as JSON, one result at a time, so that other threads can run in between."""
        return b'{"results":[' + b",".join(_result(one).model_dump_json().encode() for one in results) + b"]}"


class FeedbackAnswer(BaseModel):
    """The number of predictions that the feedback refers to, and how many of them are right."""

    predictions: int
    right: int


class Unranked(BaseModel):
    """An image that could not be ranked: its index in the request, and the problem."""

    index: int
    error: dict[str, Any]


class RankAnswer(BaseModel):
    """Indices of the images in the request, from 0, the most informative first.

    `scores` has the score of each index: mutual information (bald) or entropy in nats, 1 - (p1 - p2) of the two most
    probable classes (margin), or 1 - p1 (least_confidence). Images that could not be ranked are listed in `errors`.
    """

    by: RankBy
    method: Literal["masks", "moments"]
    samples: int | Literal["auto"]
    seed: int
    indices: list[int]
    scores: list[float]
    errors: list[Unranked]


def _result(answer: Answer | Problem) -> Answer | Refusal:
    return Refusal(error=answer.document()) if isinstance(answer, Problem) else answer


def _listed(probabilities: list[float], top_k: int | None) -> list[int] | None:
    """Indices of the most probable classes, the most probable first; None to list all classes."""
    count = len(probabilities)
    listed = top_k if top_k is not None else count if count <= _ALL_UP_TO else _LISTED_OF_MANY
    return None if listed >= count else sorted(range(count), key=lambda index: -probabilities[index])[:listed]


def _of_classes(values: list[float], listed: list[int] | None) -> list[float]:
    return values if listed is None else [values[index] for index in listed]


def _sample_probabilities(prediction: Prediction, listed: list[int] | None) -> list[list[float]] | None:
    if prediction.probs_SBC is None:
        return None
    probs_SC = prediction.probs_SBC[:, 0]
    values: list[list[float]] = (probs_SC if listed is None else probs_SC[:, listed]).tolist()
    return values


def _calibration_answer(decision: Decision) -> CalibrationAnswer | None:
    calibration = decision.calibration
    if calibration is None:
        return None
    return CalibrationAnswer(estimator=calibration.estimator, samples=calibration.samples)


def _novelty_answer(decision: Decision) -> NoveltyAnswer | None:
    novelty = decision.novelty
    if novelty is None:
        return None
    return NoveltyAnswer(score=novelty.score, threshold=novelty.threshold, flagged=novelty.flagged, view=novelty.view)


def _uncertainty_answer(
    uncertainty: Uncertainty | Moments | None, listed: list[int] | None
) -> UncertaintyAnswer | None:
    if uncertainty is None:
        return None
    return UncertaintyAnswer(
        variance=_of_classes(uncertainty.variance.tolist()[0], listed),
        standard_error=None
        if isinstance(uncertainty, Moments)
        else _of_classes(uncertainty.standard_error.tolist()[0], listed),
        predictive_entropy=uncertainty.predictive_entropy.item(),
        expected_entropy=uncertainty.expected_entropy.item(),
        mutual_information=uncertainty.mutual_information.item(),
    )
