"""Our ASGI routes in front of BentoML's application: read a request, have it answered, write the answer."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answers import BatchAnswer
from service.bodies import Content, Image, read_many, read_one
from service.metrics import CONTENT_TYPE, Metrics
from service.parameters import Parameters, RankParameters, Sampling
from service.pipeline import Checkpoint, Pipeline
from service.problems import Problem
from service.settings import Settings
from service.work import Work

Asked = TypeVar("Asked", bound=Sampling)
Result = TypeVar("Result")
Handler = Callable[[Request], Awaitable[Response]]

# What BentoML answers itself: health, descriptions, and the page that shows them.
_BENTOML_ROUTES = ("/", "/livez", "/readyz", "/healthz", "/docs.json", "/schema.json")
_BENTOML_FOLDER = "/static_content/"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_CHEAP_BYTES = 2**18  # read within a few milliseconds
_CLIENT_GONE = 499


class Edge:
    """The ASGI application that the world sees.

    Args:
        bentoml_app: BentoML's application: its own routes and the lifespan.
        pipeline: answers calls.
        metrics: where requests are counted.
        settings: limits.
    """

    def __init__(self, bentoml_app: ASGIApp, pipeline: Pipeline, metrics: Metrics, settings: Settings) -> None:
        self._bentoml_app = bentoml_app
        self._pipeline = pipeline
        self._metrics = metrics
        self._settings = settings
        self._threads = anyio.CapacityLimiter(1)
        self._routes: dict[str, tuple[str, Handler]] = {
            "/predict": ("POST", self._predict),
            "/predict_batch": ("POST", self._predict_batch),
            "/rank": ("POST", self._rank),
            "/metrics": ("GET", self._show_metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and count an HTTP request; the rest, such as the lifespan, is BentoML's."""
        if scope["type"] != "http":
            await self._bentoml_app(scope, receive, send)
            return
        start = time.perf_counter()
        code = _CLIENT_GONE

        async def send_and_note_code(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        route = self._route(scope["path"])
        try:
            if route in self._routes or route == "other":
                response = await self._respond(Request(scope, receive))
                await response(scope, receive, send_and_note_code)
            else:
                await self._bentoml_app(scope, receive, send_and_note_code)
        except ClientDisconnect:
            return  # nobody is left to answer; it is counted as 499
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.request(route, method, code, time.perf_counter() - start)

    def _route(self, path: str) -> str:
        """Name the route of a path; all unknown paths are one."""
        if path in self._routes or path in _BENTOML_ROUTES:
            return path
        return f"{_BENTOML_FOLDER}*" if path.startswith(_BENTOML_FOLDER) else "other"

    async def _respond(self, request: Request) -> Response:
        try:
            path = request.scope["path"]
            if path not in self._routes:
                raise Problem(404, "not-found", "there is nothing at this path; POST an image to /predict")
            method, handler = self._routes[path]
            if request.method != method:
                raise Problem(405, "method-not-allowed", f"use {method}", headers={"Allow": method})
            return await handler(request)
        except Problem as problem:
            return Response(problem.body(), problem.status, problem.headers, "application/problem+json")

    async def _predict(self, request: Request) -> Response:
        content, parameters = await self._read(request, read_one, Parameters)
        opened = self._pipeline.open(content.images[0])
        if opened.is_heavy:
            answer = await self._in_thread(request, lambda _: self._pipeline.answer(opened, parameters))
        else:
            answer = self._pipeline.answer(opened, parameters)
        return _json(answer.model_dump_json().encode())

    async def _predict_batch(self, request: Request) -> Response:
        images, parameters = await self._read_pool(request, Parameters)

        def work(checkpoint: Checkpoint) -> bytes:
            return BatchAnswer.of(self._pipeline.answers(images, parameters, checkpoint)).model_dump_json().encode()

        return _json(await self._in_thread(request, work))

    async def _rank(self, request: Request) -> Response:
        images, parameters = await self._read_pool(request, RankParameters)

        def work(checkpoint: Checkpoint) -> bytes:
            return self._pipeline.rank(images, parameters, checkpoint).model_dump_json().encode()

        return _json(await self._in_thread(request, work))

    async def _show_metrics(self, _: Request) -> Response:
        return Response(await anyio.to_thread.run_sync(self._metrics.expose), headers={"Content-Type": CONTENT_TYPE})

    async def _read_pool(self, request: Request, kind: type[Asked]) -> tuple[list[Image], Asked]:
        """Read images and parameters, and refuse what would be too much work."""
        content, parameters = await self._read(request, read_many, kind)
        count, limits = len(content.images), self._settings
        if count > limits.max_images:
            raise Problem(413, "too-many-images", f"a request may have at most {limits.max_images} images, got {count}")
        passes = count * max(parameters.most_samples, 1)
        if passes > limits.max_forward_passes:
            detail = (
                f"images x samples may be at most {limits.max_forward_passes}, got {count} x {parameters.most_samples}"
            )
            raise Problem(413, "too-much-work", detail)
        return content.images, parameters

    async def _read(self, request: Request, read: Callable[..., Content], kind: type[Asked]) -> tuple[Content, Asked]:
        content_type = request.headers.get("content-type", "")
        body = await _read_body(request, self._settings.max_body_bytes)

        def parse() -> tuple[Content, Asked]:
            content = read(content_type, body, max_parts=self._settings.max_images)
            return content, kind.gather(request.query_params.multi_items(), content.fields)

        return await anyio.to_thread.run_sync(parse) if len(body) > _CHEAP_BYTES else parse()

    async def _in_thread(self, request: Request, work: Callable[[Checkpoint], Result]) -> Result:
        """Let long work run beside the event loop, one at a time, until it is done, late, or nobody waits for it."""
        async with Work(request, seconds=self._settings.max_seconds) as current:
            return await anyio.to_thread.run_sync(work, current.checkpoint, limiter=self._threads)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


async def _read_body(request: Request, max_bytes: int) -> bytes:
    too_large = Problem(413, "body-too-large", f"the body must have at most {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)
