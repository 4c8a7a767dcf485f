"""What is answered to a request."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from model import Moments, Uncertainty
from model.calibration import Estimator
from service.inference.decision import Decision, Reason
from service.inference.predictor import Prediction
from service.inference.preparation import Input
from service.schemas.parameters import Parameters, RankBy
from service.schemas.problems import Problem

Mode = Literal["eval", "mc", "moments"]
# What answers, metrics and cards call each estimator.
MODES: dict[Estimator, Mode] = {"eval": "eval", "masks": "mc", "moments": "moments"}


class UncertaintyAnswer(BaseModel):
    """The spread over the dropout masks; entropies in nats, the lists in class order.

    There is no standard error where nothing was sampled.
    """

    variance: list[float]
    standard_error: list[float] | None
    predictive_entropy: float
    expected_entropy: float
    mutual_information: float


class PreprocessingAnswer(BaseModel):
    """What was done to the image before the network saw it; `image_hash` is of what it saw.

    `pixels` are what it saw, 28 rows of 28, 0..255, light on dark, if they were asked for.
    """

    source: str
    width: int
    height: int
    inverted: bool
    steps: list[str]
    image_hash: str
    pixels: Annotated[list[list[int]] | None, Field(exclude_if=lambda value: value is None)] = None


class CalibrationAnswer(BaseModel):
    """What probabilities, prediction set and abstention were calibrated for; 0 samples where nothing is sampled."""

    estimator: Estimator
    samples: int


class NoveltyAnswer(BaseModel):
    """How unlike the training's the image is; flagged above the threshold, null if that is not calibrated."""

    score: float
    threshold: float | None
    flagged: bool


class Answer(BaseModel):
    """A prediction; `uncertainty` is null in eval mode, and null is what the model was not calibrated for.

    `sample_probabilities` are those of each mask, not calibrated, if they were asked for.
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

    @classmethod
    def of(cls, prediction: Prediction, decision: Decision, image: Input, parameters: Parameters) -> Self:
        """Put together what the stages found."""
        width, height = image.size
        calibrated = decision.probabilities if parameters.calibrated else None
        probabilities = prediction.probabilities if calibrated is None else calibrated
        return cls(
            label=prediction.label,
            class_index=prediction.class_index,
            confidence=probabilities[prediction.class_index],
            probabilities=probabilities,
            mode=MODES[prediction.estimator],
            samples=prediction.samples,
            seed=parameters.seed,
            uncertainty=_uncertainty_answer(prediction.uncertainty),
            calibrated=calibrated is not None,
            calibration=_calibration_answer(decision),
            prediction_set=decision.prediction_set,
            coverage=parameters.coverage,
            abstain=decision.reason is not None,
            abstain_reason=decision.reason,
            abstain_threshold=decision.least_confidence,
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
            sample_probabilities=_sample_probabilities(prediction) if parameters.return_samples else None,
        )


class Refusal(BaseModel):
    """Takes the place of an answer: the problem with an image."""

    error: dict[str, Any]


class BatchAnswer(BaseModel):
    """For each image its answer, or the problem with it, in the order in which they were sent."""

    results: list[Answer | Refusal]

    @classmethod
    def of(cls, results: Iterable[Answer | Problem]) -> Self:
        """Put together what the stages found."""
        return cls(results=[_result(one) for one in results])

    @staticmethod
    def encode(results: Iterable[Answer | Problem]) -> bytes:
        """Write them as JSON, answer by answer: other threads wait for one at most."""
        return b'{"results":[' + b",".join(_result(one).model_dump_json().encode() for one in results) + b"]}"


class FeedbackAnswer(BaseModel):
    """How many predictions the true class was told of, and how many of them are right."""

    predictions: int
    right: int


class Unranked(BaseModel):
    """An image of the pool that could not be read: its place, and the problem."""

    index: int
    error: dict[str, Any]


class RankAnswer(BaseModel):
    """Places of the images in what was sent, from 0, by how much their labels would tell, the most first.

    The `scores` belong to `indices`: mutual information (bald) or entropy in nats, 1 - (p1 - p2) of the two most
    probable classes (margin), or 1 - p1 (least_confidence). Images that could not be read are listed apart.
    """

    by: RankBy
    method: Literal["masks", "moments"]
    samples: int | Literal["auto"]
    seed: int
    indices: list[int]
    scores: list[float]
    errors: list[Unranked]


def _result(found: Answer | Problem) -> Answer | Refusal:
    return Refusal(error=found.document()) if isinstance(found, Problem) else found


def _sample_probabilities(prediction: Prediction) -> list[list[float]] | None:
    if prediction.probs_SBC is None:
        return None
    values: list[list[float]] = prediction.probs_SBC[:, 0].tolist()
    return values


def _calibration_answer(decision: Decision) -> CalibrationAnswer | None:
    found = decision.calibration
    return None if found is None else CalibrationAnswer(estimator=found.estimator, samples=found.samples)


def _novelty_answer(decision: Decision) -> NoveltyAnswer | None:
    found = decision.novelty
    if found is None:
        return None
    return NoveltyAnswer(score=found.score, threshold=found.threshold, flagged=found.flagged)


def _uncertainty_answer(found: Uncertainty | Moments | None) -> UncertaintyAnswer | None:
    if found is None:
        return None
    return UncertaintyAnswer(
        variance=found.variance.tolist()[0],
        standard_error=None if isinstance(found, Moments) else found.standard_error.tolist()[0],
        predictive_entropy=found.predictive_entropy.item(),
        expected_entropy=found.expected_entropy.item(),
        mutual_information=found.mutual_information.item(),
    )
