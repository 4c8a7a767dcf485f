"""Endpoints that predict: /predict, /predict_batch, /rank, and inference through the Open Inference Protocol."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response

from service.http.admission import Admission
from service.http.body_reader import BodyReader
from service.http.deadline import Deadline
from service.http.open_inference.decode import read_inference
from service.http.open_inference.encode import check_outputs, write_inference
from service.http.open_inference.metadata import HEADER_LENGTH
from service.http.request_body import ParsedBody, check_count, read_many, read_one
from service.http.request_context import RequestContext
from service.http.responses import json_response
from service.inference.upload import RawImage, Upload
from service.pipeline import Run
from service.reload import ReloadableModel
from service.schemas.answers import BatchAnswer
from service.schemas.parameters import Parameters, RankParameters, Sampling
from service.schemas.problems import Problem
from service.settings import Settings

SomeParameters = TypeVar("SomeParameters", bound=Sampling)
Result = TypeVar("Result")

# Work up to these sizes takes at most a few milliseconds and runs in the event loop: bytes of a body to parse, bytes of
# an image file whose structure is read, pixels to decode.
_LIGHT_BODY_BYTES = 2**14
_LIGHT_FILE_BYTES = 2**15
_LIGHT_PIXELS = 2**17


class PredictionEndpoints:
    """The endpoints that predict.

    Args:
        model: the model that answers.
        bodies: reads request bodies.
        settings: limits.

    Attributes:
        singles: limits concurrent predictions of one image.
        batches: limits concurrent predictions of several images, and rankings.
    """

    def __init__(self, model: ReloadableModel, bodies: BodyReader, settings: Settings) -> None:
        self._model, self._bodies, self._settings = model, bodies, settings
        self._threads = anyio.CapacityLimiter(1)
        self.singles = Admission(settings.max_in_flight)
        self.batches = Admission(settings.max_batches_in_flight)

    async def predict(self, request: Request) -> Response:
        """Predict one image."""
        context = RequestContext.of(request.scope)
        content, parameters = await self._read(request, read_one, Parameters)
        (image,) = content.images
        if isinstance(image, Problem):
            raise image
        async with self.singles:
            pipeline, run = self._model.pipeline, Run(context.request_id, context.timings)

            def accept() -> Upload:
                with context.timings.stage("decode"):
                    return pipeline.accept(image)

            upload = accept() if _is_light(image) else await self._in_thread(request, lambda _: accept())
            if upload.cost <= _LIGHT_PIXELS:
                answer = pipeline.answer(upload, parameters, run)
            else:
                answer = await self._in_thread(request, partial(pipeline.answer, upload, parameters))
            with context.timings.stage("encode"):
                return json_response(answer.model_dump_json().encode())

    async def predict_batch(self, request: Request) -> Response:
        """Predict several images."""
        context = RequestContext.of(request.scope)
        images, parameters = await self._read_many(request, Parameters)
        pipeline = self._model.pipeline

        def work(run: Run) -> bytes:
            answers = list(pipeline.answers(images, parameters, run))
            with context.timings.stage("encode"):
                return BatchAnswer.encode(answers)

        async with self.batches:
            return json_response(await self._in_thread(request, work))

    async def rank(self, request: Request) -> Response:
        """Rank images by how informative their labels would be for training."""
        images, parameters = await self._read_many(request, RankParameters)
        pipeline = self._model.pipeline

        def work(run: Run) -> bytes:
            return pipeline.rank(images, parameters, run).model_dump_json().encode()

        async with self.batches:
            return json_response(await self._in_thread(request, work))

    async def infer(self, request: Request) -> Response:
        """Predict several images through the Open Inference Protocol."""
        context = RequestContext.of(request.scope)
        body = await self._bodies.read(request)
        inference = await anyio.to_thread.run_sync(
            read_inference,
            body,
            request.headers.get(HEADER_LENGTH),
            self._settings,
            self._model.pipeline.input,
        )
        check_outputs(inference)
        self._check_work(len(inference.images), inference.parameters)
        _note(context, body, len(inference.images), inference.parameters)
        pipeline = self._model.pipeline

        def work(run: Run) -> tuple[bytes, int | None]:
            answers = list(pipeline.answers(inference.images, inference.parameters, run))
            with context.timings.stage("encode"):
                return write_inference(inference, answers, pipeline.classes)

        async with self.batches:
            content, json_length = await self._in_thread(request, work, seconds=inference.seconds)
        if json_length is None:
            return json_response(content)
        return Response(content, headers={HEADER_LENGTH: str(json_length)}, media_type="application/octet-stream")

    async def _read_many(
        self, request: Request, kind: type[SomeParameters]
    ) -> tuple[list[RawImage | Problem], SomeParameters]:
        """Read images and parameters, and refuse requests that need too much work."""
        content, parameters = await self._read(request, read_many, kind)
        self._check_work(len(content.images), parameters)
        return content.images, parameters

    def _check_work(self, count: int, parameters: Sampling) -> None:
        check_count(count, self._settings)
        limit = self._settings.max_forward_passes
        if count * max(parameters.max_work, 1) > limit:
            detail = f"images x samples may be {limit} at most, got {count} x {parameters.max_work}"
            rules = "with return_samples, each sample counts twice; samples=auto counts as at least 200"
            raise Problem("too-much-work", f"{detail} ({rules})")

    async def _read(
        self, request: Request, parse_body: Callable[..., ParsedBody], kind: type[SomeParameters]
    ) -> tuple[ParsedBody, SomeParameters]:
        content_type = request.headers.get("content-type", "")
        body = await self._bodies.read(request)

        def parse() -> tuple[ParsedBody, SomeParameters]:
            content = parse_body(content_type, body, self._settings, self._model.pipeline.input)
            return content, kind.gather(request.query_params.multi_items(), content.fields)

        is_light = len(body) <= _LIGHT_BODY_BYTES
        content, parameters = parse() if is_light else await anyio.to_thread.run_sync(parse)
        _note(RequestContext.of(request.scope), body, len(content.images), parameters)
        return content, parameters

    async def _in_thread(
        self, request: Request, work: Callable[[Run], Result], *, seconds: float | None = None
    ) -> Result:
        """Run long work in a thread, one request at a time, until the deadline or until the client disconnects."""
        context, limit = RequestContext.of(request.scope), self._settings.max_seconds
        async with Deadline(request, seconds=limit if seconds is None else min(seconds, limit)) as deadline:
            run = Run(context.request_id, context.timings, deadline.check)
            return await anyio.to_thread.run_sync(partial(work, run), limiter=self._threads)


def _is_light(image: RawImage) -> bool:
    """Whether reading the structure of an image takes at most a few milliseconds."""
    return not isinstance(image, bytes) or len(image) <= _LIGHT_FILE_BYTES


def _note(context: RequestContext, body: bytes, images: int, parameters: Sampling) -> None:
    """Add the size of a request to its log line."""
    context.notes |= {"bytes": len(body), "images": images, "samples": parameters.samples}
