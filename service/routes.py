"""Our ASGI routes in front of BentoML's application: read a request, have it answered, write the answer."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import v2
from service.admission import Admission
from service.answers import BatchAnswer
from service.bodies import Content, Image, read_many, read_one
from service.exchange import LOGGER, Exchange
from service.keys import Keys
from service.live import Live, ModelError
from service.metrics import CONTENT_TYPE, Metrics
from service.openapi import describe
from service.parameters import Parameters, RankParameters, Sampling
from service.pipeline import Checkpoint, Pipeline
from service.problems import Problem
from service.settings import Settings
from service.uploads import Uploads
from service.work import Work

Asked = TypeVar("Asked", bound=Sampling)
Result = TypeVar("Result")
Handler = Callable[[Request, Exchange], Awaitable[Response]]

# What BentoML answers itself: health, the description that its clients read, and a page that shows ours.
_BENTOML_ROUTES = ("/", "/livez", "/readyz", "/healthz", "/schema.json")
_BENTOML_FOLDER = "/static_content/"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"),
]
_CHEAP_BYTES = 2**18  # read within a few milliseconds
_CLIENT_GONE = 499


@dataclass(frozen=True)
class Route:
    """What answers at a path."""

    method: str
    handler: Handler
    keys: Keys
    admission: Admission | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that are understood."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


class Edge:
    """The ASGI application that the world sees.

    Args:
        bentoml_app: BentoML's application: its own routes and the lifespan.
        live: holds the model that answers.
        metrics: where requests are counted.
        settings: limits and keys.
    """

    def __init__(self, bentoml_app: ASGIApp, live: Live, metrics: Metrics, settings: Settings) -> None:
        self._bentoml_app = bentoml_app
        self._live = live
        self._metrics = metrics
        self._settings = settings
        self._threads = anyio.CapacityLimiter(1)
        self._singles, self._batches = Admission(settings.max_in_flight), Admission(settings.max_batches_in_flight)
        self._uploads = Uploads(settings)
        keys, open_to_all = settings.keys(), Keys(())
        self._routes: dict[str, Route] = {
            "/predict": Route("POST", self._predict, keys, self._singles),
            "/predict_batch": Route("POST", self._predict_batch, keys, self._batches),
            "/rank": Route("POST", self._rank, keys, self._batches),
            "/metrics": Route("GET", self._show_metrics, keys if settings.metrics_need_key else open_to_all),
        }
        for path in v2.model_paths():
            self._routes[f"{path}/infer"] = Route("POST", self._infer, keys, self._batches)
        admins = settings.keys_of_admins()
        if admins:
            self._routes["/admin/reload"] = Route("POST", self._reload, admins)
        self._has_keys, self._has_admins = bool(keys), bool(admins)
        self._pages, self._shown = self._describe(live.pipeline), live.pipeline
        self._routes |= dict.fromkeys(self._pages, Route("GET", self._show_page, open_to_all))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, count and log an HTTP request; the rest, such as the lifespan, is BentoML's."""
        if scope["type"] == "lifespan":
            following = asyncio.create_task(self._live.follow())
            try:
                await self._bentoml_app(scope, receive, send)
            finally:
                following.cancel()
            return
        if scope["type"] != "http":
            await self._bentoml_app(scope, receive, send)
            return
        exchange = Exchange(dict(scope["headers"]))
        status = _CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *exchange.headers(), *_SECURITY_HEADERS]
            await send(message)

        route = self._route(scope["path"])
        try:
            if route in self._routes or route == "other":
                response = await self._respond(Request(scope, receive), exchange)
                await response(scope, receive, send_with_headers)
            else:
                await self._bentoml_app(scope, receive, send_with_headers)
        except ClientDisconnect:
            return  # nobody is left to answer; it is counted as 499
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            seconds = exchange.age
            self._metrics.request(route, method, status, seconds)
            exchange.log(method=method, route=route, status=status, seconds=seconds)

    def _route(self, path: str) -> str:
        """Name the route of a path; all unknown paths are one."""
        if path in self._routes or path in _BENTOML_ROUTES:
            return path
        return f"{_BENTOML_FOLDER}*" if path.startswith(_BENTOML_FOLDER) else "other"

    async def _respond(self, request: Request, exchange: Exchange) -> Response:
        try:
            route = self._routes.get(request.scope["path"])
            if route is None:
                raise Problem(404, "not-found", "there is nothing at this path; POST an image to /predict")
            if request.method not in route.methods:
                allowed = ", ".join(route.methods)
                raise Problem(405, "method-not-allowed", f"use {allowed}", headers={"Allow": allowed})
            if route.admission is not None:
                route.admission.check()
            self._uploads.check_headers(request.scope)
            route.keys.check(exchange.sent)
            return await route.handler(request, exchange)
        except Problem as problem:
            return _problem(problem, request, exchange)
        except ClientDisconnect:
            raise
        except Exception:  # noqa: BLE001 - a fault of ours is logged, and the client told
            LOGGER.exception("failure", extra={"told": {"request_id": exchange.request_id}})
            detail = f"the service failed; its log tells more of the request {exchange.request_id}"
            return _problem(Problem(500, "internal-error", detail), request, exchange)

    async def _predict(self, request: Request, exchange: Exchange) -> Response:
        content, parameters = await self._read(request, exchange, read_one, Parameters)
        async with self._singles:
            pipeline = self._live.pipeline
            with exchange.stage("decode"):
                opened = pipeline.open(content.images[0])
            if opened.is_heavy:
                answer = await self._in_thread(request, lambda _: pipeline.answer(opened, parameters, exchange))
            else:
                answer = pipeline.answer(opened, parameters, exchange)
            with exchange.stage("encode"):
                return _json(answer.model_dump_json().encode())

    async def _predict_batch(self, request: Request, exchange: Exchange) -> Response:
        images, parameters = await self._read_pool(request, exchange, Parameters)
        pipeline = self._live.pipeline

        def work(checkpoint: Checkpoint) -> bytes:
            answer = BatchAnswer.of(pipeline.answers(images, parameters, exchange, checkpoint))
            with exchange.stage("encode"):
                return answer.model_dump_json().encode()

        async with self._batches:
            return _json(await self._in_thread(request, work))

    async def _rank(self, request: Request, exchange: Exchange) -> Response:
        images, parameters = await self._read_pool(request, exchange, RankParameters)
        pipeline = self._live.pipeline

        def work(checkpoint: Checkpoint) -> bytes:
            return pipeline.rank(images, parameters, exchange, checkpoint).model_dump_json().encode()

        async with self._batches:
            return _json(await self._in_thread(request, work))

    async def _infer(self, request: Request, exchange: Exchange) -> Response:
        body = await self._uploads.body(request)
        header = request.headers.get(v2.HEADER_LENGTH)
        asked = await anyio.to_thread.run_sync(v2.read, body, header, self._settings)
        v2.check_outputs(asked)
        self._check_work(len(asked.images), asked.parameters)
        exchange.notes |= {"bytes": len(body), "images": len(asked.images), "samples": asked.parameters.samples}
        pipeline = self._live.pipeline

        def work(checkpoint: Checkpoint) -> tuple[bytes, int | None]:
            answers = list(pipeline.answers(asked.images, asked.parameters, exchange, checkpoint))
            with exchange.stage("encode"):
                return v2.write(asked, answers, pipeline.classes)

        async with self._batches:
            content, length = await self._in_thread(request, work, seconds=asked.seconds)
        if length is None:
            return _json(content)
        return Response(content, headers={v2.HEADER_LENGTH: str(length)}, media_type="application/octet-stream")

    async def _show_metrics(self, _: Request, __: Exchange) -> Response:
        return Response(await anyio.to_thread.run_sync(self._metrics.expose), headers={"Content-Type": CONTENT_TYPE})

    async def _show_page(self, request: Request, _: Exchange) -> Response:
        pipeline = self._live.pipeline
        if pipeline is not self._shown:
            self._pages, self._shown = self._describe(pipeline), pipeline
        return _json(self._pages[request.scope["path"]])

    def _describe(self, pipeline: Pipeline) -> dict[str, bytes]:
        """What a model and the ways to it are described by, by path."""
        image, answer = pipeline.example()
        example = answer.model_dump(mode="json")
        description = describe(example=example, image=image, with_keys=self._has_keys, with_admin=self._has_admins)
        return {
            "/docs.json": json.dumps(description).encode(),
            **v2.pages(len(pipeline.classes), self._settings.max_images),
        }

    async def _reload(self, request: Request, _: Exchange) -> Response:
        await self._uploads.body(request)
        try:
            model = await anyio.to_thread.run_sync(lambda: self._live.reload(tell=True))
        except ModelError as error:
            raise Problem(409, "model-refused", f"the old model goes on answering: {error}") from error
        return _json(json.dumps({"model": model}).encode())

    async def _read_pool(self, request: Request, exchange: Exchange, kind: type[Asked]) -> tuple[list[Image], Asked]:
        """Read images and parameters, and refuse what would be too much work."""
        content, parameters = await self._read(request, exchange, read_many, kind)
        self._check_work(len(content.images), parameters)
        return content.images, parameters

    def _check_work(self, count: int, parameters: Sampling) -> None:
        limits = self._settings
        if count > limits.max_images:
            raise Problem(413, "too-many-images", f"a request may have at most {limits.max_images} images, got {count}")
        passes = count * max(parameters.most_samples, 1)
        if passes > limits.max_forward_passes:
            got = f"{count} x {parameters.most_samples}"
            raise Problem(
                413, "too-much-work", f"images x samples may be {limits.max_forward_passes} at most, got {got}"
            )

    async def _read(
        self, request: Request, exchange: Exchange, read: Callable[..., Content], kind: type[Asked]
    ) -> tuple[Content, Asked]:
        content_type = request.headers.get("content-type", "")
        body = await self._uploads.body(request)

        def parse() -> tuple[Content, Asked]:
            content = read(content_type, body, self._settings)
            return content, kind.gather(request.query_params.multi_items(), content.fields)

        content, parameters = await anyio.to_thread.run_sync(parse) if len(body) > _CHEAP_BYTES else parse()
        exchange.notes |= {"bytes": len(body), "images": len(content.images), "samples": parameters.samples}
        return content, parameters

    async def _in_thread(
        self, request: Request, work: Callable[[Checkpoint], Result], *, seconds: float | None = None
    ) -> Result:
        """Let long work run beside the event loop, one at a time, until it is done, late, or nobody waits for it."""
        most = self._settings.max_seconds
        async with Work(request, seconds=most if seconds is None else min(seconds, most)) as current:
            return await anyio.to_thread.run_sync(work, current.checkpoint, limiter=self._threads)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _problem(problem: Problem, request: Request, exchange: Exchange) -> Response:
    exchange.notes["problem"] = problem.kind
    body = problem.body(with_error=v2.is_v2(request.scope["path"]))
    return Response(body, problem.status, problem.headers, "application/problem+json")
