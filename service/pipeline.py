"""The stages between a call and its answer: decode, predict, count. No HTTP but its problems."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.decision import Decider
from service.images import (
    EncodedImage,
    ImageError,
    Pixels,
    TooManyPixelsError,
    UnknownFormatError,
    array_image,
    decode_image,
    open_image,
)
from service.metrics import Metrics
from service.predictor import Prediction, Predictor
from service.schemas import Answer, Call, Parameters, Problem
from service.settings import Settings

_CHEAP_PIXELS = 2**18  # decoded within a few milliseconds


@dataclass(frozen=True)
class OpenedCall:
    """A call whose image may be worth decoding: its header, or its array, is in hand."""

    image: EncodedImage | list[object]
    parameters: Parameters

    @property
    def is_heavy(self) -> bool:
        """Whether answering takes so long that others must not wait for it."""
        return isinstance(self.image, EncodedImage) and self.image.pixel_count > _CHEAP_PIXELS


class Pipeline:
    """Calls -> answers.

    Args:
        predictor: the model.
        decider: what it was calibrated for.
        metrics: where predictions are counted.
        settings: limits.
    """

    def __init__(self, predictor: Predictor, decider: Decider, metrics: Metrics, settings: Settings) -> None:
        self._predictor = predictor
        self._decider = decider
        self._metrics = metrics
        self._settings = settings

    def open(self, call: Call) -> OpenedCall:
        """Refuse at once what need not be decoded to be refused.

        Raises:
            Problem: 413 for too many pixels, 415 for an unknown format, 422 for a broken header.
        """
        image = call.image
        if isinstance(image, bytes):
            with _as_problem():
                return OpenedCall(open_image(image, max_pixels=self._settings.max_pixels), call.parameters)
        return OpenedCall(image, call.parameters)

    def finish(self, opened: OpenedCall) -> Answer:
        """Decode and predict.

        Raises:
            Problem: 422 for broken image data, or an array of another shape or range.
        """
        image, parameters = opened.image, opened.parameters
        with _as_problem():
            if isinstance(image, EncodedImage):
                prepared = decode_image(image, invert=parameters.invert)
            else:
                prepared = array_image(image, unit_range=parameters.dtype == "float", invert=parameters.invert)
        prediction = self._predict(prepared.pixels, parameters)
        decision = self._decider.decide(prediction, prepared.pixels, parameters.demands, seed=parameters.seed)
        self._metrics.prediction(prediction)
        return Answer.of(prediction, decision, prepared, parameters)

    def _predict(self, pixels: Pixels, asked: Parameters) -> Prediction:
        if asked.method == "moments":
            return self._predictor.propagate(pixels)
        if asked.samples == "auto":
            return self._predictor.sample_until(
                pixels, tolerance=asked.tolerance, max_samples=asked.max_samples, seed=asked.seed
            )
        if asked.samples == 0:
            return self._predictor.predict(pixels)
        return self._predictor.sample(pixels, samples=asked.samples, seed=asked.seed)


@contextmanager
def _as_problem() -> Iterator[None]:
    try:
        yield
    except UnknownFormatError as error:
        raise Problem(415, "unsupported-image-format", str(error)) from error
    except TooManyPixelsError as error:
        raise Problem(413, "image-too-large", str(error)) from error
    except ImageError as error:
        raise Problem(422, "invalid-image", str(error)) from error
