"""The stages between images and answers, joined: accept, decode, prepare, predict, decide. No HTTP but its problems."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch

from model import Artifact, entropy
from service.inference.decision import Decision, DecisionOptions, DecisionPolicy, Decisions
from service.inference.decoding import decode_all
from service.inference.errors import DecoderError, ImageError
from service.inference.limits import ImageLimits
from service.inference.pixels import SIDE, Pixels
from service.inference.predictor import Prediction, Predictions, Predictor
from service.inference.preparation import Input, prepare_all
from service.inference.upload import RawImage, Upload
from service.monitoring.drift import Reference
from service.monitoring.logs import LOGGER
from service.monitoring.timings import Timings
from service.schemas.answers import Answer, RankAnswer, Unranked
from service.schemas.parameters import Parameters, RankBy, RankParameters, Sampling
from service.schemas.problems import Problem, image_problem, internal_error

# What one step of a long request may cost, so that others need not wait for it: images, masks, pixels.
_IMAGES_AT_ONCE = 64
_MASKS_AT_ONCE = 6400
_PIXELS_AT_ONCE = 2**20

# Called between the steps of a long request: raises what ends the work, if anything does.
Checkpoint = Callable[[], None]


def _go_on() -> None:
    """Never end the work."""


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Attributes:
        request_id: of the request that it answers.
        timings: what its stages take.
        checkpoint: ends the run, if anything does.
    """

    request_id: str = ""
    timings: Timings = field(default_factory=Timings)
    checkpoint: Checkpoint = _go_on


class Observer(Protocol):
    """Is told of each prediction."""

    def __call__(
        self, model: str, request_id: str, image: Input, prediction: Prediction, decision: Decision | None
    ) -> None:
        """Note a prediction; the decision is None where none was asked for."""


class Outcome(NamedTuple):
    """What was found about one image; the decision is None where none was asked for."""

    image: Input
    prediction: Prediction
    decision: Decision | None


class Batch(NamedTuple):
    """What was found about several images.

    Attributes:
        images: inputs, or the problem with an image, in the order of the images.
        predictions: of the inputs; None if there is no input.
        decisions: on these; None where none were asked for.
    """

    images: list[Input | Problem]
    predictions: Predictions | None = None
    decisions: Decisions | None = None

    def each(self) -> Iterator[Outcome | Problem]:
        """Yield what was found about each image, in their order."""
        predictions = iter(() if self.predictions is None else self.predictions.each())
        decisions = iter(() if self.decisions is None else self.decisions.each())
        for image in self.images:
            yield image if isinstance(image, Problem) else Outcome(image, next(predictions), next(decisions, None))


class Pipeline:
    """Images -> answers. The same image and parameters give the same answer, whatever comes with the image.

    Args:
        artifact: the model.
        limits: of image files; the files of one request together have the same number of pixels.
        observer: is told of each prediction that is answered.
        novelty_together: whether to score the novelty of several images at once, in a tenth of the time; scores then
            differ from those of each image alone by rounding.

    Raises:
        TypeError: the model is not a chain of linear layers, ReLU and dropout.
        ValueError: the model takes other images, has no dropout to sample, has too many classes, or does not give the
            known image what its layers say.
    """

    def __init__(
        self,
        artifact: Artifact,
        limits: ImageLimits,
        *,
        observer: Observer | None = None,
        novelty_together: bool = False,
    ) -> None:
        self.model, self.classes = artifact.sha256, artifact.classes
        self.card = {name: value for name, value in artifact.card.items() if name != "calibrations"}  # which are tables
        self.recipe = str(artifact.card.get("recipe", {}).get("name", ""))
        self.reference = Reference(artifact)
        self.limits = limits
        self._predictor = Predictor(artifact)
        self._policy = DecisionPolicy(artifact, together=novelty_together)
        self._observer = observer
        self._predictor.warm_up()
        self._check(artifact)

    def accept(self, image: RawImage) -> Upload:
        """Refuse an image at once if it need not be decoded to be refused.

        Raises:
            Problem: 413 for too many pixels, 415 for an unknown format, 422 for a broken structure or a side that is
                too long.
        """
        try:
            return Upload.of(image, self.limits)
        except ImageError as error:
            raise image_problem(error) from error

    def try_accept(self, image: RawImage | Problem, run: Run) -> Upload | Problem:
        """Return the problem with an image instead of raising it; an unexpected error is logged."""
        try:
            return image if isinstance(image, Problem) else self.accept(image)
        except Problem as problem:
            return problem
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one image spoils no other
            return _internal_error(error, run)

    def answer(self, upload: Upload, parameters: Parameters, run: Run) -> Answer:
        """Decode, predict and decide.

        Raises:
            Problem: 422 for broken image data, or an array of another shape or range.
        """
        (outcome,) = self._evaluate([upload], parameters, parameters.decision_options, run).each()
        if isinstance(outcome, Problem):
            raise outcome
        return self._answer(outcome, parameters, run)

    def answers(
        self, images: Iterable[RawImage | Problem], parameters: Parameters, run: Run
    ) -> Iterator[Answer | Problem]:
        """Yield for each image what `answer` gives, or the problem with it: each as if it were alone."""
        for outcome in self._outcomes(images, parameters, parameters.decision_options, run):
            yield outcome if isinstance(outcome, Problem) else self._answer(outcome, parameters, run)

    def rank(self, images: Iterable[RawImage | Problem], parameters: RankParameters, run: Run) -> RankAnswer:
        """Order images by the value of their labels for training; of equal ones the first comes first."""
        scores, errors = {}, []
        for index, outcome in enumerate(self._outcomes(images, parameters, None, run)):
            if isinstance(outcome, Problem):
                errors.append(Unranked(index=index, error=outcome.document()))
            else:
                self._observe(outcome, run)
                scores[index] = self._score(outcome.prediction, parameters)
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

    def evaluate(
        self, group: Sequence[Upload | Problem], sampling: Sampling, options: DecisionOptions | None, run: Run
    ) -> Iterator[Batch]:
        """Predict and decide images together, each as if it were alone.

        Args:
            group: the images; one only with samples=auto, which stops for each image by itself.
            sampling: how to read and predict them.
            options: of the decisions; None for none.
            run: that this is a part of.

        Yields:
            All images together. Where that fails, each image alone: the one that brings about the unexpected error as
            the problem "internal-error".
        """
        try:
            batch = self._evaluate(group, sampling, options, run)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one image spoils no other
            if len(group) == 1:
                yield Batch([_internal_error(error, run)])
            else:
                for one in group:
                    yield from self.evaluate([one], sampling, options, run)
        else:
            yield batch

    def example(self) -> tuple[list[list[int]], Answer]:
        """Predict a drawing, (28, 28), without counting it."""
        drawing, parameters = _trousers(), Parameters(samples=100)
        batch = self._evaluate([Upload(drawing)], parameters, parameters.decision_options, Run())
        (outcome,) = (one for one in batch.each() if isinstance(one, Outcome))
        return drawing.tolist(), _answer(outcome, parameters)

    def _check(self, artifact: Artifact) -> None:
        """Compare the answers to a known image with what PyTorch computes by the layers."""
        drawing = _trousers()
        with torch.inference_mode():
            inputs_B = torch.from_numpy(drawing[None, None] / np.float32(255))
            (expected,) = artifact.network(inputs_B).double().softmax(dim=1).tolist()
        (found,) = self._predictor.predict(drawing[None]).probs_BC.tolist()
        (sampled,) = self._predictor.sample(drawing[None], samples=100, seed=0).probs_BC.tolist()
        if not (np.allclose(found, expected, atol=1e-5) and np.isclose(sum(sampled), 1)):
            raise ValueError(f"a known image must get the probabilities {expected}, got {found}")

    def _outcomes(
        self, images: Iterable[RawImage | Problem], sampling: Sampling, options: DecisionOptions | None, run: Run
    ) -> Iterator[Outcome | Problem]:
        """Yield what was found about each image of a request."""
        uploads = (self.try_accept(image, run) for image in images)
        for group in _groups(_allowed(uploads, self.limits.max_pixels), sampling):
            run.checkpoint()
            for batch in self.evaluate(group, sampling, options, run):
                yield from batch.each()

    def _evaluate(
        self, group: Sequence[Upload | Problem], sampling: Sampling, options: DecisionOptions | None, run: Run
    ) -> Batch:
        with run.timings.stage("decode"):
            uploads = [one for one in group if isinstance(one, Upload)]
            decoded = decode_all(uploads, unit_range=sampling.dtype == "float")
            prepared = iter(prepare_all(decoded, invert=sampling.invert))
        images = [one if isinstance(one, Problem) else _input(next(prepared), run) for one in group]
        inputs = [image for image in images if isinstance(image, Input)]
        if not inputs:
            return Batch(images)
        with run.timings.stage("infer"):
            pixels_BHW = inputs[0].pixels[None] if len(inputs) == 1 else np.stack([one.pixels for one in inputs])
            predictions = _predict(self._predictor, pixels_BHW, sampling)
            decisions = None
            if options is not None:
                decisions = self._policy.decide(predictions, pixels_BHW, options, seed=sampling.seed)
        return Batch(images, predictions, decisions)

    def _answer(self, outcome: Outcome, parameters: Parameters, run: Run) -> Answer:
        with run.timings.stage("encode"):
            answer = _answer(outcome, parameters)
        self._observe(outcome, run)
        return answer

    def _observe(self, outcome: Outcome, run: Run) -> None:
        if self._observer is not None:
            self._observer(self.model, run.request_id, *outcome)

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


def _allowed(uploads: Iterable[Upload | Problem], pixels: int) -> Iterator[Upload | Problem]:
    """Refuse each image of a request that, together with those before it, would cost more pixels than are allowed."""
    left = pixels
    for upload in uploads:
        cost = 0 if isinstance(upload, Problem) else upload.cost
        if cost > left:
            why = f"the images of a request may have {pixels} pixels together, and those before it have {pixels - left}"
            yield Problem("image-too-large", f"{why}: send it in another request")
        else:
            left -= cost
            yield upload


def _groups(uploads: Iterable[Upload | Problem], sampling: Sampling) -> Iterator[list[Upload | Problem]]:
    """Collect images that are evaluated in one step: one where that is samples=auto, which stops for each by itself."""
    most = min(_IMAGES_AT_ONCE, max(_MASKS_AT_ONCE // max(sampling.max_masks, 1), 1))
    most = 1 if sampling.samples == "auto" else most
    group: list[Upload | Problem] = []
    cost = 0
    for upload in uploads:
        group.append(upload)
        cost += 0 if isinstance(upload, Problem) else upload.cost
        if len(group) == most or cost > _PIXELS_AT_ONCE:
            yield group
            group, cost = [], 0
    if group:
        yield group


def _input(found: Input | ImageError, run: Run) -> Input | Problem:
    if isinstance(found, DecoderError):
        _log("decoder failed", found, run)
    return image_problem(found) if isinstance(found, ImageError) else found


def _internal_error(error: Exception, run: Run) -> Problem:
    """Log an unexpected error, and make the problem that the client gets."""
    _log("failure", error, run)
    problem = internal_error(run.request_id)
    problem.__cause__ = error
    return problem


def _log(event: str, error: Exception, run: Run) -> None:
    LOGGER.error(event, exc_info=error, extra={"fields": {"request_id": run.request_id}})


def _predict(predictor: Predictor, pixels_BHW: Pixels, sampling: Sampling) -> Predictions:
    """Predict prepared images (B, 28, 28) as the parameters say; one image only where they say samples=auto."""
    if sampling.method == "moments":
        return predictor.propagate(pixels_BHW)
    if sampling.samples == "auto":
        return predictor.sample_until(
            pixels_BHW, tolerance=sampling.tolerance, max_samples=sampling.max_samples, seed=sampling.seed
        )
    if sampling.samples == 0:
        return predictor.predict(pixels_BHW)
    return predictor.sample(pixels_BHW, samples=sampling.samples, seed=sampling.seed)


def _answer(outcome: Outcome, parameters: Parameters) -> Answer:
    image, prediction, decision = outcome
    if decision is None:
        raise ValueError("an answer needs a decision")
    return Answer.of(prediction, decision, image, parameters)


def _trousers() -> Pixels:
    """Draw two legs below a waistband."""
    drawing = np.zeros((SIDE, SIDE), np.uint8)
    drawing[1:27, 8:13] = drawing[1:27, 15:20] = drawing[1:6, 8:20] = 200
    return drawing
