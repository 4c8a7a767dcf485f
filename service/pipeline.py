"""The stages between images and answers: decode, predict, decide, count. No HTTP but its problems."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from model import Artifact, entropy
from service.http.request_body import Image
from service.inference.decision import Decision, DecisionPolicy
from service.inference.formats import ImageError, UnknownFormatError
from service.inference.images import (
    SIDE,
    DecoderError,
    EncodedImage,
    Grey,
    ImageLimits,
    Pixels,
    TooManyPixelsError,
    array_image,
    decode_image,
    decode_plain,
    open_image,
)
from service.inference.png import PlainPng
from service.inference.predictor import Prediction, Predictions, Predictor
from service.inference.preparation import Prepared, prepare, prepare_all
from service.monitoring.drift import Reference
from service.monitoring.logs import LOGGER
from service.monitoring.metrics import Metrics
from service.monitoring.prediction_log import MODES, UNKNOWN, PredictionLog, key
from service.monitoring.timings import Timings
from service.schemas.answers import Answer, RankAnswer, Unranked
from service.schemas.parameters import Parameters, RankBy, RankParameters, Sampling
from service.schemas.problems import Problem, failed
from service.settings import Settings

# A file of so many bytes is read, and one of such a cost decoded, within a few milliseconds.
_CHEAP_BYTES = 2**15
_CHEAP_COST = 2**17

# Called between images: raises what ends the work, if anything does.
Checkpoint = Callable[[], None]


def _go_on() -> None:
    """Never end the work."""


class Opened(NamedTuple):
    """An image that may be worth decoding: its header, its array, or its pixels are in hand."""

    image: EncodedImage | list[object] | Pixels

    @property
    def is_heavy(self) -> bool:
        """Whether decoding takes so long that others must not wait for it."""
        return self.cost > _CHEAP_COST

    @property
    def cost(self) -> int:
        """What decoding costs, in pixels; 0 for what is no file."""
        return self.image.cost if isinstance(self.image, EncodedImage) else 0


class _Allowance:
    """The pixels that the images of one request may cost together.

    Args:
        pixels: how many.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = self._left = pixels

    def spend(self, opened: Opened) -> Opened:
        """Count an image.

        Raises:
            Problem: 413 for one that is too much.
        """
        if opened.cost > self._left:
            why = f"the images of a request may have {self._pixels} pixels together, and those before it have"
            raise Problem("image-too-large", f"{why} {self._pixels - self._left}: send it in another request")
        self._left -= opened.cost
        return opened


class Pipeline:
    """Images -> answers.

    Args:
        artifact: the model.
        metrics: where predictions are counted.
        recent: where they are kept for a while.
        settings: limits.

    Raises:
        TypeError: the model is not a chain of linear layers, ReLU and dropout.
        ValueError: the model takes other images, has no dropout to sample, has too many classes, or does not give the
            known image what its layers say.
    """

    def __init__(self, artifact: Artifact, metrics: Metrics, recent: PredictionLog, settings: Settings) -> None:
        self.model, self.classes = artifact.sha256, artifact.classes
        self.card = {name: value for name, value in artifact.card.items() if name != "calibrations"}  # which are tables
        self.recipe = str(artifact.card.get("recipe", {}).get("name", ""))
        self.reference = Reference(artifact)
        self._predictor = Predictor(artifact)
        self._policy = DecisionPolicy(artifact)
        self._metrics, self._recent = metrics, recent
        self._settings = settings
        self._predictor.warm_up()
        self._check(artifact)

    def open(self, image: Image) -> Opened:
        """Refuse at once what need not be decoded to be refused.

        Raises:
            Problem: 413 for too many pixels, 415 for an unknown format, 422 for a broken structure or a side that is
                too long.
        """
        return open_any(image, self._settings.image_limits)

    def answer(self, opened: Opened, parameters: Parameters, stages: Timings) -> Answer:
        """Decode, predict and decide.

        Raises:
            Problem: 422 for broken image data, or an array of another shape or range.
        """
        prediction, decision, answer = self._answered(opened, parameters, stages)
        self._metrics.prediction(self.model, prediction, decision)
        self._recent.add(
            time.time(),
            key(stages.request_id),
            int(answer.preprocessing.image_hash, 16),
            self.reference.model,
            prediction.predictive_entropy,
            prediction.mutual_information,
            max(decision.probabilities or prediction.probabilities),
            prediction.samples,
            prediction.class_index,
            MODES.index(prediction.mode),
            UNKNOWN,
        )
        return answer

    def answers(
        self, images: Sequence[Image], parameters: Parameters, stages: Timings, checkpoint: Checkpoint = _go_on
    ) -> Iterator[Answer | Problem]:
        """Yield for each image what `answer` gives, or the problem with it: each as if it were alone."""
        allowance = _Allowance(self._settings.max_pixels)
        for image in images:
            checkpoint()
            try:
                yield self.answer(allowance.spend(self.open(image)), parameters, stages)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one image spoils no other
                yield _problem(error, stages)

    def rank(
        self, images: Sequence[Image], parameters: RankParameters, stages: Timings, checkpoint: Checkpoint = _go_on
    ) -> RankAnswer:
        """Order images by how much their labels would tell; of equal ones the first comes first."""
        scores, errors, allowance = {}, [], _Allowance(self._settings.max_pixels)
        for index, image in enumerate(images):
            checkpoint()
            try:
                _, predictions = self._predicted(allowance.spend(self.open(image)), parameters, stages)
                (prediction,) = predictions.each()
                self._metrics.prediction(self.model, prediction, None)
                scores[index] = self._score(prediction, parameters)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one image spoils no other
                errors.append(Unranked(index=index, error=_problem(error, stages).document()))
        indices = sorted(scores, key=lambda index: -scores[index])[: parameters.limit]
        return RankAnswer(
            by=parameters.by,
            method=parameters.method,
            samples=0 if parameters.method == "moments" else parameters.samples,
            seed=parameters.seed,
            indices=indices,
            scores=[scores[index] for index in indices],
            errors=errors,
        )

    def _check(self, artifact: Artifact) -> None:
        """See that a known image is answered as PyTorch computes the layers."""
        drawing = _trousers()
        with torch.inference_mode():
            inputs_B = torch.from_numpy(drawing[None, None] / np.float32(255))
            (expected,) = artifact.network(inputs_B).double().softmax(dim=1).tolist()
        (found,) = self._predictor.predict(drawing[None]).probs_BC.tolist()
        (sampled,) = self._predictor.sample(drawing[None], samples=100, seed=0).probs_BC.tolist()
        if not (np.allclose(found, expected, atol=1e-5) and np.isclose(sum(sampled), 1)):
            raise ValueError(f"a known image must get the probabilities {expected}, got {found}")

    def example(self) -> tuple[list[list[int]], Answer]:
        """Predict a drawing, (28, 28), without counting it."""
        drawing = _trousers()
        _, _, answer = self._answered(Opened(drawing), Parameters(samples=100), Timings())
        return drawing.tolist(), answer

    def _answered(self, opened: Opened, parameters: Parameters, stages: Timings) -> tuple[Prediction, Decision, Answer]:
        prepared, predictions = self._predicted(opened, parameters, stages)
        with stages.stage("infer"):
            decisions = self._policy.decide(
                predictions, prepared.pixels[None], parameters.decision_options, seed=parameters.seed
            )
        with stages.stage("encode"):
            (prediction,), (decision,) = predictions.each(), decisions.each()
            return prediction, decision, Answer.of(prediction, decision, prepared, parameters)

    def _predicted(self, opened: Opened, parameters: Sampling, stages: Timings) -> tuple[Prepared, Predictions]:
        with stages.stage("decode"):
            try:
                prepared = decode(opened, parameters)
            except Problem as problem:
                if isinstance(problem.__cause__, DecoderError):
                    _log("decoder failed", problem.__cause__, stages)
                raise
        with stages.stage("infer"):
            return prepared, predict(self._predictor, prepared.pixels[None], parameters)

    def _score(self, prediction: Prediction, parameters: RankParameters) -> float:
        if prediction.uncertainty is not None and parameters.by == "bald":
            return prediction.uncertainty.mutual_information.item()
        probs_C = np.array(prediction.probabilities)
        calibration = self._policy.calibration(prediction) if parameters.calibrated else None
        if calibration is not None:
            (probs_C,) = calibration.probabilities(probs_C[None])
        return _SCORES[parameters.by](probs_C)


_SCORES: dict[RankBy, Callable[[np.ndarray], float]] = {
    "entropy": lambda probs_C: entropy(torch.from_numpy(probs_C)).item(),
    "margin": lambda probs_C: float(1 - np.diff(np.partition(probs_C, -2)[-2:])[0]),
    "least_confidence": lambda probs_C: float(1 - probs_C.max()),
}


def is_light(image: Image) -> bool:
    """Whether an image is opened within a few milliseconds."""
    return not isinstance(image, bytes) or len(image) <= _CHEAP_BYTES


def open_any(image: Image, limits: ImageLimits) -> Opened:
    """Open an image in whichever form it came, see `Pipeline.open`."""
    if isinstance(image, Problem):
        raise image
    if isinstance(image, bytes):
        with _as_problem:
            return Opened(open_image(image, **limits._asdict()))
    return Opened(image)


def _problem(error: Exception, stages: Timings) -> Problem:
    """The problem with one image of several; what is a fault of ours is logged."""
    if not isinstance(error, Problem):
        _log("failure", error, stages)
        return failed(stages.request_id)
    return error


def _log(event: str, error: Exception, stages: Timings) -> None:
    LOGGER.error(event, exc_info=error, extra={"fields": {"request_id": stages.request_id}})


def decode(opened: Opened, asked: Sampling) -> Prepared:
    """Bring an image to what the network takes.

    Raises:
        Problem: 422 for broken image data, or an array of another shape or range.
    """
    return prepare(_grey(opened, asked), invert=asked.invert)


def decode_all(images: Iterable[Image], asked: Sampling, limits: ImageLimits) -> list[Prepared | Problem]:
    """Open and decode many images, or tell what is wrong with them: as one by one, but faster."""
    opened = [_opened(image, asked, limits) for image in images]
    plain = iter(decode_plain([one for one in opened if isinstance(one, PlainPng)]))
    decoded = [
        (next(plain) or _decoded(Opened(EncodedImage(one)), asked)) if isinstance(one, PlainPng) else one
        for one in opened
    ]
    prepared = iter(prepare_all([one for one in decoded if isinstance(one, Grey)], invert=asked.invert))
    return [next(prepared) if isinstance(one, Grey) else one for one in decoded]


def _opened(image: Image, asked: Sampling, limits: ImageLimits) -> PlainPng | Grey | Prepared | Problem:
    """Open an image; decode it at once, unless it is of the kind that is decoded together."""
    try:
        opened = open_any(image, limits)
    except Problem as problem:
        return problem
    plain = opened.image.plain if isinstance(opened.image, EncodedImage) else None
    return plain or _decoded(opened, asked)


def _decoded(opened: Opened, asked: Sampling) -> Grey | Prepared | Problem:
    """Decode an image; prepare it at once, unless it is of the size that is prepared together: it may be large."""
    try:
        grey = _grey(opened, asked)
    except Problem as problem:
        return problem
    return grey if grey.pixels.shape == (SIDE, SIDE) else prepare(grey, invert=asked.invert)


def _grey(opened: Opened, asked: Sampling) -> Grey:
    image = opened.image
    with _as_problem:
        if isinstance(image, EncodedImage):
            return decode_image(image)
        if isinstance(image, list):
            return array_image(image, unit_range=asked.dtype == "float")
        return Grey(image, "array")


def predict(predictor: Predictor, pixels_BHW: Pixels, asked: Sampling) -> Predictions:
    """Predict prepared images (B, 28, 28) in the way that is asked for; but one where that is samples=auto."""
    if asked.method == "moments":
        return predictor.propagate(pixels_BHW)
    if asked.samples == "auto":
        return predictor.sample_until(
            pixels_BHW, tolerance=asked.tolerance, max_samples=asked.max_samples, seed=asked.seed
        )
    if asked.samples == 0:
        return predictor.predict(pixels_BHW)
    return predictor.sample(pixels_BHW, samples=asked.samples, seed=asked.seed)


def _trousers() -> Pixels:
    """Draw two legs below a waistband."""
    drawing = np.zeros((SIDE, SIDE), np.uint8)
    drawing[1:27, 8:13] = drawing[1:27, 15:20] = drawing[1:6, 8:20] = 200
    return drawing


class _AsProblem:
    """Turns what is wrong with an image into the problem that is answered."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, UnknownFormatError):
            raise Problem("unsupported-image-format", str(error)) from error
        if isinstance(error, TooManyPixelsError):
            raise Problem("image-too-large", str(error)) from error
        if isinstance(error, ImageError):
            raise Problem("invalid-image", str(error)) from error


_as_problem = _AsProblem()
