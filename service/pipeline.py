"""The stages from images to answers: accept, decode, prepare, predict, decide. No HTTP except its problems."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import softmax

from model import Artifact, entropy
from model.chain import run
from model.examples import file_name
from model.input_spec import FASHION_MNIST
from service.inference.decision import Decision, DecisionOptions, DecisionPolicy, Decisions
from service.inference.decoding import decode_all
from service.inference.errors import DecoderError, ImageError
from service.inference.limits import ImageLimits
from service.inference.pixels import Pixels
from service.inference.predictor import Prediction, Predictions, Predictor
from service.inference.preparation import Input, prepare_all
from service.inference.upload import RawImage, Upload
from service.monitoring.coverage import CoverageFile, CoverageMonitor
from service.monitoring.drift import Reference
from service.monitoring.logs import LOGGER
from service.monitoring.timings import Timings
from service.schemas.answers import Answer, RankAnswer, Unranked
from service.schemas.parameters import Parameters, RankBy, RankParameters, Sampling
from service.schemas.problems import Problem, image_problem, internal_error, invalid

# Limits on one step of a long request, so that other requests need not wait long: images, masks, pixels.
_IMAGES_AT_ONCE = 64
_MASKS_AT_ONCE = 6400
_PIXELS_AT_ONCE = 2**20

# Called between the steps of a long request; raises an exception to stop the work.
Checkpoint = Callable[[], None]


def _never_stop() -> None:
    """Let the work continue."""


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Attributes:
        request_id: id of the request.
        timings: durations of the stages.
        checkpoint: called between steps; raises an exception to stop the run.
    """

    request_id: str = ""
    timings: Timings = field(default_factory=Timings)
    checkpoint: Checkpoint = _never_stop


class Observer(Protocol):
    """A callback that receives each prediction."""

    def __call__(
        self, model: str, request_id: str, image: Input, prediction: Prediction, decision: Decision | None
    ) -> None:
        """Receive a prediction; the decision is None if none was requested."""


class Outcome(NamedTuple):
    """The result for one image; the decision is None if none was requested."""

    image: Input
    prediction: Prediction
    decision: Decision | None


class Batch(NamedTuple):
    """The results for several images.

    Attributes:
        images: for each image the network's input, or the problem with the image.
        predictions: predictions for the inputs; None without inputs.
        decisions: decisions on the predictions; None if none were requested.
    """

    images: list[Input | Problem]
    predictions: Predictions | None = None
    decisions: Decisions | None = None

    def each(self) -> Iterator[Outcome | Problem]:
        """Yield the result for each image, in order."""
        predictions = iter(() if self.predictions is None else self.predictions.each())
        decisions = iter(() if self.decisions is None else self.decisions.each())
        for image in self.images:
            yield image if isinstance(image, Problem) else Outcome(image, next(predictions), next(decisions, None))


class Pipeline:
    """Turns images into answers. An answer depends on image and parameters only, not on other images of the batch.

    With adaptive prediction sets it also depends on the feedback so far.

    Args:
        artifact: the model.
        limits: limits on image files; the pixel limit also applies to all files of a request together.
        observer: receives each answered prediction.
        coverage: receives feedback, and adapts prediction sets to it if that is wanted; None for sets that stay.
        novelty_together: whether to score the novelty of several images at once, in a tenth of the time; the scores
            then differ by rounding from those of each image alone.

    Raises:
        ValueError: the model takes other images than its input specification says, has no dropout to sample, or fails
            the check on an example image.
    """

    def __init__(
        self,
        artifact: Artifact,
        limits: ImageLimits,
        *,
        observer: Observer | None = None,
        coverage: CoverageMonitor | None = None,
        novelty_together: bool = False,
    ) -> None:
        self.model, self.classes = artifact.sha256, artifact.classes
        self.card = {name: value for name, value in artifact.card.items() if name != "calibrations"}  # large tables
        self.card["input_specification"] = artifact.input.to_json()
        self.failures = artifact.failures
        if artifact.moments_unavailable is not None:
            self.card["chain"] = {"unavailable": artifact.moments_unavailable}
        self.examples = {file_name(place): example.content for place, example in enumerate(artifact.examples)}
        self.recipe = str(artifact.card.get("recipe", {}).get("name", ""))
        self.reference = Reference(artifact)
        self.limits = limits
        self._predictor = Predictor(artifact)
        self.input = self._predictor.input
        self.coverage = coverage or CoverageMonitor(CoverageFile(None), artifact, adaptive=False)
        adaptations = self.coverage.adaptation if self.coverage.adaptive else None
        self._policy = DecisionPolicy(artifact, together=novelty_together, adaptations=adaptations)
        self._observer = observer
        self._predictor.warm_up()
        self._check(artifact)

    def accept(self, image: RawImage) -> Upload:
        """Check an image without decoding it.

        Raises:
            Problem: 413 for too many pixels, 415 for an unknown format, 422 for a broken structure or an extreme aspect
                ratio.
        """
        try:
            return Upload.of(image, self.limits)
        except ImageError as error:
            raise image_problem(error) from error

    def try_accept(self, image: RawImage | Problem, run: Run) -> Upload | Problem:
        """Check an image without decoding it; return problems instead of raising them, and log unexpected errors."""
        try:
            return image if isinstance(image, Problem) else self.accept(image)
        except Problem as problem:
            return problem
        except Exception as error:  # noqa: BLE001 - an error with one image must not affect the others
            return _internal_error(error, run)

    def answer(self, upload: Upload, parameters: Parameters, run: Run) -> Answer:
        """Answer an image: decode, prepare, predict and decide.

        Raises:
            Problem: 422 for broken image data, an array of another shape or range, or a method that the network does
                not allow.
        """
        check_method(parameters, self._predictor.moments_unavailable)
        (outcome,) = self._evaluate([upload], parameters, parameters.decision_options, run).each()
        if isinstance(outcome, Problem):
            raise outcome
        return self._answer(outcome, parameters, run)

    def answers(
        self, images: Iterable[RawImage | Problem], parameters: Parameters, run: Run
    ) -> Iterator[Answer | Problem]:
        """Yield for each image its answer, as by `answer`, or the problem with it."""
        for outcome in self._outcomes(images, parameters, parameters.decision_options, run):
            yield outcome if isinstance(outcome, Problem) else self._answer(outcome, parameters, run)

    def rank(self, images: Iterable[RawImage | Problem], parameters: RankParameters, run: Run) -> RankAnswer:
        """Rank images by how informative their labels would be for training; equal scores keep the images' order."""
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
        """Predict and decide images together, with the same results as for each image alone.

        Args:
            group: the images; only one with samples=auto, where the number of masks depends on the image.
            sampling: how to read and predict the images.
            options: options of the decisions; None for no decisions.
            run: the run that these images belong to.

        Yields:
            One batch with all images. After an unexpected error, one batch for each image instead; the image that
            causes the error gets the problem "internal-error".
        """
        try:
            batch = self._evaluate(group, sampling, options, run)
        except Exception as error:  # noqa: BLE001 - an error with one image must not affect the others
            if len(group) == 1:
                yield Batch([_internal_error(error, run)])
            else:
                for one in group:
                    yield from self.evaluate([one], sampling, options, run)
        else:
            yield batch

    def example(self) -> tuple[Pixels, Answer]:
        """Predict a drawing of the network's size, for documentation; the observer does not receive it."""
        drawing, parameters = _drawing(self.input.pixel_shape), Parameters(samples=100)
        batch = self._evaluate([Upload(drawing)], parameters, parameters.decision_options, Run())
        (outcome,) = (one for one in batch.each() if isinstance(one, Outcome))
        return drawing, _answer(outcome, parameters, self.classes)

    def _check(self, artifact: Artifact) -> None:
        """Check the predictions for a drawing, where one network has layers as arrays against what these give."""
        drawing = _drawing(self.input.pixel_shape)
        (probabilities,) = self._predictor.predict(drawing[None]).probs_BC.tolist()
        (sampled,) = self._predictor.sample(drawing[None], samples=100, seed=0).probs_BC.tolist()
        for found in (probabilities, sampled):
            if not np.isclose(sum(found), 1):
                raise ValueError(f"the example image must get probabilities that sum to 1, got {found}")
        if artifact.chain is not None and artifact.members == 1:
            before, after = artifact.chain.stages()
            expected = softmax(run((*before, *after), self.input.normalize(drawing[None]).ravel())).tolist()
            if not np.allclose(probabilities, expected, atol=1e-5):
                raise ValueError(f"the example image must get the probabilities {expected}, got {probabilities}")

    def _outcomes(
        self, images: Iterable[RawImage | Problem], sampling: Sampling, options: DecisionOptions | None, run: Run
    ) -> Iterator[Outcome | Problem]:
        """Yield the result for each image of a request.

        Raises:
            Problem: 422 for a method that the network does not allow.
        """
        check_method(sampling, self._predictor.moments_unavailable)
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
            decoded = decode_all(uploads, unit_range=sampling.dtype == "float", spec=self.input)
            prepared = iter(prepare_all(decoded, invert=sampling.invert, spec=self.input))
        images = [one if isinstance(one, Problem) else _input(next(prepared), run) for one in group]
        inputs = [image for image in images if isinstance(image, Input)]
        if not inputs:
            return Batch(images)
        with run.timings.stage("infer"), self._predictor.share_prefix():
            pixels_BHW = inputs[0].pixels[None] if len(inputs) == 1 else np.stack([one.pixels for one in inputs])
            predictions = _predict(self._predictor, pixels_BHW, sampling)
            decisions = None
            if options is not None:
                decisions = self._policy.decide(predictions, pixels_BHW, options, seed=sampling.seed)
        return Batch(images, predictions, decisions)

    def _answer(self, outcome: Outcome, parameters: Parameters, run: Run) -> Answer:
        with run.timings.stage("encode"):
            answer = _answer(outcome, parameters, self.classes)
        self._observe(outcome, run)
        return answer

    def _observe(self, outcome: Outcome, run: Run) -> None:
        if self._observer is not None:
            self._observer(self.model, run.request_id, *outcome)

    def _score(self, prediction: Prediction, parameters: RankParameters) -> float:
        if prediction.uncertainty is not None and parameters.by == "bald":
            return prediction.mutual_information
        probs_C = np.array(prediction.probabilities)
        calibration = self._policy.calibration(prediction) if parameters.calibrated else None
        if calibration is not None:
            (probs_C,) = calibration.probabilities(probs_C[None])
        return _SCORES[parameters.by](probs_C)


_SCORES: dict[RankBy, Callable[[np.ndarray], float]] = {
    "entropy": lambda probs_C: float(entropy(probs_C)),
    "margin": lambda probs_C: float(1 - np.diff(np.partition(probs_C, -2)[-2:])[0]),
    "least_confidence": lambda probs_C: float(1 - probs_C.max()),
}


def check_method(sampling: Sampling, moments_unavailable: str | None) -> None:
    """Check that the network allows the method.

    Args:
        sampling: the method.
        moments_unavailable: why the network does not allow moment propagation; None if it does.

    Raises:
        Problem: 422 for method=moments where the network doesn't allow it.
    """
    if sampling.method == "moments" and moments_unavailable is not None:
        raise invalid(("method", f"must be masks with this network: {moments_unavailable}"))


def _allowed(uploads: Iterable[Upload | Problem], pixels: int) -> Iterator[Upload | Problem]:
    """Replace each image that would exceed the pixel limit of a request by a problem."""
    remaining = pixels
    for upload in uploads:
        cost = 0 if isinstance(upload, Problem) else upload.cost
        if cost > remaining:
            rule = f"the images of a request may have {pixels} pixels together"
            detail = f"{rule}, and the images before this one have {pixels - remaining}: send it in another request"
            yield Problem("image-too-large", detail)
        else:
            remaining -= cost
            yield upload


def _groups(uploads: Iterable[Upload | Problem], sampling: Sampling) -> Iterator[list[Upload | Problem]]:
    """Group images that are evaluated in one step; with samples=auto, every image is evaluated alone."""
    limit = min(_IMAGES_AT_ONCE, max(_MASKS_AT_ONCE // max(sampling.max_masks, 1), 1))
    limit = 1 if sampling.samples == "auto" else limit
    group: list[Upload | Problem] = []
    cost = 0
    for upload in uploads:
        group.append(upload)
        cost += 0 if isinstance(upload, Problem) else upload.cost
        if len(group) == limit or cost > _PIXELS_AT_ONCE:
            yield group
            group, cost = [], 0
    if group:
        yield group


def _input(prepared: Input | ImageError, run: Run) -> Input | Problem:
    if isinstance(prepared, DecoderError):
        _log("decoder failed", prepared, run)
    return image_problem(prepared) if isinstance(prepared, ImageError) else prepared


def _internal_error(error: Exception, run: Run) -> Problem:
    """Log an unexpected error, and make its problem for the client."""
    _log("failure", error, run)
    problem = internal_error(run.request_id)
    problem.__cause__ = error
    return problem


def _log(event: str, error: Exception, run: Run) -> None:
    LOGGER.error(event, exc_info=error, extra={"fields": {"request_id": run.request_id}})


def _predict(predictor: Predictor, pixels_BHW: Pixels, sampling: Sampling) -> Predictions:
    """Predict prepared images; only one image with samples=auto."""
    if sampling.method == "moments":
        return predictor.propagate(pixels_BHW)
    if sampling.samples == "auto":
        return predictor.sample_until(
            pixels_BHW, tolerance=sampling.tolerance, max_samples=sampling.max_samples, seed=sampling.seed
        )
    if sampling.samples == 0:
        return predictor.predict(pixels_BHW)
    return predictor.sample(pixels_BHW, samples=sampling.samples, seed=sampling.seed)


def _answer(outcome: Outcome, parameters: Parameters, classes: Sequence[str]) -> Answer:
    image, prediction, decision = outcome
    if decision is None:
        raise ValueError("an answer needs a decision")
    return Answer.of(prediction, decision, image, parameters, classes)


def _drawing(shape: tuple[int, ...]) -> Pixels:
    """Draw trousers, two legs below a waistband, on a dark background of any size."""
    down_H, across_W = (np.arange(size) * FASHION_MNIST.height // size for size in shape[:2])
    legs_W, between_W = np.isin(across_W, [*range(8, 13), *range(15, 20)]), np.isin(across_W, (13, 14))
    height_H, waistband_H = (down_H >= 1) & (down_H < 27), (down_H >= 1) & (down_H < 6)
    drawing = np.where(np.outer(height_H, legs_W) | np.outer(waistband_H, between_W), np.uint8(200), np.uint8(0))
    return np.ascontiguousarray(np.broadcast_to(drawing.reshape(*drawing.shape, *(1 for _ in shape[2:])), shape))
