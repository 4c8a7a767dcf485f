"""Our ASGI routes in front of BentoML's application: read a request, have it answered, write the answer."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http import open_inference as v2
from service.http import static_files as pages
from service.http.admission import Admission
from service.http.deadline import Deadline
from service.http.feedback import Feedback
from service.http.keys import Keys
from service.http.openapi import describe
from service.http.request_body import Image, ParsedBody, check_count, read_many, read_one
from service.http.request_context import RequestContext
from service.http.uploads import Uploads
from service.monitoring.logs import LOGGER
from service.monitoring.metrics import CONTENT_TYPE, FLUSH_SECONDS, Metrics
from service.monitoring.prediction_log import PredictionLog
from service.pipeline import Checkpoint, Opened, Pipeline, is_light
from service.reload import ModelError, ReloadableModel
from service.schemas.answers import BatchAnswer
from service.schemas.parameters import Parameters, RankParameters, Sampling
from service.schemas.problems import STATUSES, Problem, failed
from service.settings import Settings

if TYPE_CHECKING:  # an extra, imported where it is configured
    from service.http.tracing import Tracing

Asked = TypeVar("Asked", bound=Sampling)
Result = TypeVar("Result")
Handler = Callable[[Request, RequestContext], Awaitable[Response]]

# What BentoML answers itself: health, the description that its clients read, and a page that shows ours.
_BENTOML_ROUTES = ("/", "/livez", "/readyz", "/healthz", "/schema.json")
_BENTOML_FOLDER = "/static_content/"
_READING = ("GET", "HEAD")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
# What BentoML's page needs; ours have a stricter one.
_POLICY = b"default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_CHEAP_BYTES = 2**14  # read within a few milliseconds, whatever they are
_CLIENT_GONE = 499
_CODES = {200, _CLIENT_GONE, *STATUSES.values()} - {405}
_CODES_OF_PAGES = (200, 401, 414, 431, _CLIENT_GONE, 500)
_CODES_OF_FILES = (304, 308)  # beside those of pages
_CODES_OF_BENTOML = (200, 404, _CLIENT_GONE, 503)
_CODES_OF_OTHERS = (404, 405, 414, 431)


@dataclass(frozen=True)
class Route:
    """What answers at a path.

    Attributes:
        name: what metrics and logs call it; paths that answer alike may share one.
        method: that is understood.
        handler: answers; None if BentoML does.
        keys: that open it; None if it is open to all.
        admission: how many requests are in work at once; None for any number.
        other_codes: that it may answer with, beside those of its method.
        policy: what browsers may load for what is answered (Content-Security-Policy).
    """

    name: str
    method: str
    handler: Handler | None = None
    keys: Keys | None = None
    admission: Admission | None = None
    other_codes: tuple[int, ...] = ()
    policy: bytes = _POLICY

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that are understood."""
        return _READING if self.method == "GET" else (self.method,)

    @property
    def codes(self) -> Collection[int]:
        """Those that it may answer with."""
        if self.handler is None:
            return _CODES_OF_BENTOML
        return {*{"GET": _CODES_OF_PAGES, "POST": _CODES}.get(self.method, _CODES_OF_OTHERS), *self.other_codes}


class Edge:
    """The ASGI application that the world sees.

    Args:
        bentoml_app: BentoML's application: its own routes and the lifespan.
        live: holds the model that answers.
        metrics: where requests are counted.
        recent: predictions that feedback may be about.
        settings: limits and keys.
        tracing: of requests, if they are traced.
    """

    def __init__(
        self,
        bentoml_app: ASGIApp,
        *,
        live: ReloadableModel,
        metrics: Metrics,
        recent: PredictionLog,
        settings: Settings,
        tracing: "Tracing | None",
    ) -> None:
        self._bentoml_app = bentoml_app
        self._live = live
        self._metrics, self._recent = metrics, recent
        self._settings, self._tracing = settings, tracing
        self._threads = anyio.CapacityLimiter(1)
        self._singles, self._batches = Admission(settings.max_in_flight), Admission(settings.max_batches_in_flight)
        self._uploads = Uploads(settings)
        keys, admins = settings.keys(), settings.keys_of_admins()
        routes = [
            Route("/predict", "POST", self._predict, keys, self._singles),
            Route("/predict_batch", "POST", self._predict_batch, keys, self._batches),
            Route("/rank", "POST", self._rank, keys, self._batches),
            Route("/feedback", "POST", self._feedback, keys),
            Route("/metrics", "GET", self._show_metrics, keys if settings.metrics_need_key else None),
        ]
        if admins:
            routes.append(Route("/admin/reload", "POST", self._reload, admins))
        routes += [Route(path, "GET") for path in _BENTOML_ROUTES]
        self._routes = {route.name: route for route in routes}
        path, path_of_version = (f"{path}/infer" for path in v2.model_paths())
        self._routes[path] = self._routes[path_of_version] = Route(path, "POST", self._infer, keys, self._batches)
        self._has_keys, self._has_admins = bool(keys), bool(admins)
        self._pages, self._shown = self._describe(live.pipeline), live.pipeline
        for path in self._pages:
            self._routes[path] = Route("/v2/*" if v2.is_v2(path) else path, "GET", self._show_page)
        self._files = pages.read_files()
        for path in (*self._files, f"{pages.ROOT}/"):
            name = path if path == pages.ROOT else f"{pages.ROOT}/*"
            self._routes[path] = Route(name, "GET", self._show_file, other_codes=_CODES_OF_FILES, policy=pages.POLICY)
        self._static, self._other = Route(f"{_BENTOML_FOLDER}*", "GET"), Route("other", "other", self._refuse)
        for route in (*self._routes.values(), self._static, self._other):
            metrics.route(route.name, route.method, route.codes, timed=route.method == "POST")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, count and log an HTTP request; the rest, such as the lifespan, is BentoML's."""
        if scope["type"] == "lifespan":
            await self._live_and_end(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._bentoml_app(scope, receive, send)
            return
        context = RequestContext(dict(scope["headers"]))
        route = self._route(scope["path"])
        if scope["method"] not in route.methods:
            route = self._other
        status = _CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                guards = [*_SECURITY_HEADERS, (b"content-security-policy", route.policy)]
                message["headers"] = [*message.get("headers", ()), *context.headers(), *guards]
            await send(message)

        self._metrics.begin()
        span = self._tracing and self._tracing.start(context)
        try:
            if route.handler is None:
                await self._bentoml_app(scope, receive, send_with_headers)
            else:
                response = await self._respond(route, route.handler, Request(scope, receive), context)
                await response(scope, receive, send_with_headers)
        except ClientDisconnect:
            return  # nobody is left to answer; it is counted as 499
        finally:
            self._tell(route, scope["method"], status, context)
            if self._tracing and span:
                self._tracing.end(span, context, method=route.method, route=route.name, status=status)

    async def _live_and_end(self, scope: Scope, receive: Receive, send: Send) -> None:
        beside = [asyncio.create_task(task()) for task in (self._live.follow, self._count)]

        async def send_after_the_end(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):  # nothing runs any more once it is sent
                for task in beside:
                    task.cancel()
                if self._tracing:
                    await anyio.to_thread.run_sync(self._tracing.close)
            await send(message)

        await self._bentoml_app(scope, receive, send_after_the_end)

    async def _count(self) -> None:
        """Count what metrics have noted, until it is cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self._metrics.flush()

    def _route(self, path: str) -> Route:
        """Find what is at a path; all unknown paths are one."""
        known = self._routes.get(path)
        return known or (self._static if path.startswith(_BENTOML_FOLDER) else self._other)

    def _tell(self, route: Route, method: str, status: int, context: RequestContext) -> None:
        """Count and log what became of a request."""
        seconds = context.age
        self._metrics.request(route.name, route.method, status, seconds)
        if "images" in context.notes:
            self._metrics.stages(context.seconds, context.notes["images"])
        sent = method if method in _METHODS else "other"
        context.log(method=sent, route=route.name, status=status, seconds=seconds)

    async def _respond(self, route: Route, handler: Handler, request: Request, context: RequestContext) -> Response:
        try:
            if route.admission is not None:
                route.admission.check()
            self._uploads.check_headers(request.scope)
            if route.keys is not None:
                route.keys.check(context.sent)
            return await handler(request, context)
        except Problem as problem:
            return self._problem(problem, request, context)
        except ClientDisconnect:
            raise
        except Exception:  # noqa: BLE001 - a fault of ours is logged, and the client told
            LOGGER.exception("failure", extra={"fields": {"request_id": context.request_id}})
            return self._problem(failed(context.request_id), request, context)

    async def _refuse(self, request: Request, _: RequestContext) -> Response:
        route = self._route(request.scope["path"])
        if route is self._other:
            raise Problem("not-found", "there is nothing at this path; POST an image to /predict")
        allowed = ", ".join(route.methods)
        raise Problem("method-not-allowed", f"use {allowed}", headers={"Allow": allowed})

    def _problem(self, problem: Problem, request: Request, context: RequestContext) -> Response:
        context.notes["problem"] = problem.kind
        self._metrics.rejected(problem.kind)
        body = problem.body(with_error=v2.is_v2(request.scope["path"]))
        return Response(body, problem.status, problem.headers, "application/problem+json")

    async def _predict(self, request: Request, context: RequestContext) -> Response:
        content, parameters = await self._read(request, context, read_one, Parameters)
        async with self._singles:
            pipeline = self._live.pipeline
            image = content.images[0]

            def open_it() -> Opened:
                with context.stage("decode"):
                    return pipeline.open(image)

            opened = open_it() if is_light(image) else None
            if opened is None or opened.is_heavy:
                answer = await self._in_thread(
                    request, lambda _: pipeline.answer(opened or open_it(), parameters, context)
                )
            else:
                answer = pipeline.answer(opened, parameters, context)
            with context.stage("encode"):
                return _json(answer.model_dump_json().encode())

    async def _predict_batch(self, request: Request, context: RequestContext) -> Response:
        images, parameters = await self._read_pool(request, context, Parameters)
        pipeline = self._live.pipeline

        def work(checkpoint: Checkpoint) -> bytes:
            answers = list(pipeline.answers(images, parameters, context, checkpoint))
            with context.stage("encode"):
                return BatchAnswer.encode(answers)

        async with self._batches:
            return _json(await self._in_thread(request, work))

    async def _rank(self, request: Request, context: RequestContext) -> Response:
        images, parameters = await self._read_pool(request, context, RankParameters)
        pipeline = self._live.pipeline

        def work(checkpoint: Checkpoint) -> bytes:
            return pipeline.rank(images, parameters, context, checkpoint).model_dump_json().encode()

        async with self._batches:
            return _json(await self._in_thread(request, work))

    async def _infer(self, request: Request, context: RequestContext) -> Response:
        body = await self._uploads.body(request)
        header = request.headers.get(v2.HEADER_LENGTH)
        asked = await anyio.to_thread.run_sync(v2.read, body, header, self._settings)
        v2.check_outputs(asked)
        self._check_work(len(asked.images), asked.parameters)
        context.notes |= {"bytes": len(body), "images": len(asked.images), "samples": asked.parameters.samples}
        pipeline = self._live.pipeline

        def work(checkpoint: Checkpoint) -> tuple[bytes, int | None]:
            answers = list(pipeline.answers(asked.images, asked.parameters, context, checkpoint))
            with context.stage("encode"):
                return v2.write(asked, answers, pipeline.classes)

        async with self._batches:
            content, length = await self._in_thread(request, work, seconds=asked.seconds)
        if length is None:
            return _json(content)
        return Response(content, headers={v2.HEADER_LENGTH: str(length)}, media_type="application/octet-stream")

    async def _feedback(self, request: Request, context: RequestContext) -> Response:
        body = await self._uploads.body(request)
        asked = await anyio.to_thread.run_sync(Feedback.read, body, self._settings)
        answer = await anyio.to_thread.run_sync(asked.tell, self._recent, self._live.pipeline.classes)
        self._metrics.feedback(right=answer.right, wrong=answer.predictions - answer.right)
        context.notes["bytes"] = len(body)
        return _json(answer.model_dump_json().encode())

    async def _show_metrics(self, _: Request, __: RequestContext) -> Response:
        return Response(await anyio.to_thread.run_sync(self._metrics.expose), headers={"Content-Type": CONTENT_TYPE})

    async def _show_page(self, request: Request, _: RequestContext) -> Response:
        pipeline = self._live.pipeline
        if pipeline is not self._shown:
            self._pages, self._shown = self._describe(pipeline), pipeline
        return _json(self._pages[request.scope["path"]])

    async def _show_file(self, request: Request, _: RequestContext) -> Response:
        file = self._files.get(request.scope["path"])
        return pages.without_slash() if file is None else file.answer(request)

    def _describe(self, pipeline: Pipeline) -> dict[str, bytes]:
        """What a model and the ways to it are described by, by path."""
        image, answer = pipeline.example()
        example = answer.model_dump(mode="json")
        description = describe(example=example, image=image, with_keys=self._has_keys, with_admin=self._has_admins)
        return {
            "/docs.json": json.dumps(description).encode(),
            "/card.json": json.dumps(pipeline.card).encode(),
            **v2.pages(len(pipeline.classes), self._settings.max_images),
        }

    async def _reload(self, request: Request, _: RequestContext) -> Response:
        await self._uploads.body(request)
        try:
            model = await anyio.to_thread.run_sync(lambda: self._live.reload(tell=True))
        except ModelError as error:
            raise Problem("model-refused", f"the old model goes on answering: {error}") from error
        return _json(json.dumps({"model": model}).encode())

    async def _read_pool(
        self, request: Request, context: RequestContext, kind: type[Asked]
    ) -> tuple[list[Image], Asked]:
        """Read images and parameters, and refuse what would be too much work."""
        content, parameters = await self._read(request, context, read_many, kind)
        self._check_work(len(content.images), parameters)
        return content.images, parameters

    def _check_work(self, count: int, parameters: Sampling) -> None:
        limits = self._settings
        check_count(count, limits)
        passes = count * max(parameters.most_work, 1)
        if passes > limits.max_forward_passes:
            got = f"{count} x {parameters.most_work}"
            detail = f"images x samples may be {limits.max_forward_passes} at most, got {got}"
            raise Problem(
                "too-much-work",
                f"{detail} (with return_samples, each counts twice; samples=auto counts as 200 at least)",
            )

    async def _read(
        self, request: Request, context: RequestContext, read: Callable[..., ParsedBody], kind: type[Asked]
    ) -> tuple[ParsedBody, Asked]:
        content_type = request.headers.get("content-type", "")
        body = await self._uploads.body(request)

        def parse() -> tuple[ParsedBody, Asked]:
            content = read(content_type, body, self._settings)
            return content, kind.gather(request.query_params.multi_items(), content.fields)

        content, parameters = await anyio.to_thread.run_sync(parse) if len(body) > _CHEAP_BYTES else parse()
        context.notes |= {"bytes": len(body), "images": len(content.images), "samples": parameters.samples}
        return content, parameters

    async def _in_thread(
        self, request: Request, work: Callable[[Checkpoint], Result], *, seconds: float | None = None
    ) -> Result:
        """Let long work run beside the event loop, one at a time, until it is done, late, or nobody waits for it."""
        most = self._settings.max_seconds
        async with Deadline(request, seconds=most if seconds is None else min(seconds, most)) as current:
            return await anyio.to_thread.run_sync(work, current.checkpoint, limiter=self._threads)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
