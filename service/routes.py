"""Our ASGI routes in front of BentoML's application: read a request, have it answered, write the answer."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import CONTENT_TYPE, Metrics
from service.pipeline import Pipeline
from service.schemas import Call, Parameters, Problem, call_from_json, missing_image
from service.settings import Settings

Handler = Callable[[Request], Awaitable[Response]]

# What BentoML answers itself: health, descriptions, and the page that shows them.
_BENTOML_ROUTES = ("/", "/livez", "/readyz", "/healthz", "/docs.json", "/schema.json")
_BENTOML_FOLDER = "/static_content/"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_FILE_TYPES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")
# No type at all, and what curl --data-binary says of a file unless told otherwise.
_UNTYPED = ("", "application/x-www-form-urlencoded")
_MAX_FIELDS = 20
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
        self._heavy_work = anyio.CapacityLimiter(1)
        self._routes: dict[str, tuple[str, Handler]] = {
            "/predict": ("POST", self._predict),
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
        opened = self._pipeline.open(await _read_call(request, self._settings.max_body_bytes))
        if opened.is_heavy:
            answer = await anyio.to_thread.run_sync(self._pipeline.finish, opened, limiter=self._heavy_work)
        else:
            answer = self._pipeline.finish(opened)
        return Response(answer.model_dump_json(), media_type="application/json")

    async def _show_metrics(self, _: Request) -> Response:
        return Response(await anyio.to_thread.run_sync(self._metrics.expose), headers={"Content-Type": CONTENT_TYPE})


async def _read_call(request: Request, max_bytes: int) -> Call:
    """Read one image and its parameters, however they were sent."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query = request.query_params.multi_items()
    body = await _read_body(request, max_bytes)
    if content_type == "multipart/form-data":
        return await _call_from_form(request, body)
    if content_type == "application/json":
        return call_from_json(body, query)
    if content_type in _FILE_TYPES or content_type in _UNTYPED:
        if not body:
            raise missing_image()
        return Call(body, Parameters.gather(query))
    raise Problem(
        415,
        "unsupported-media-type",
        f"send multipart/form-data, application/json or one of {', '.join(_FILE_TYPES)}, not {content_type[:100]}",
    )


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


async def _call_from_form(request: Request, body: bytes) -> Call:
    form = await _parse_form(request, body)
    images = form.getlist("image")
    if not images:
        raise missing_image()
    if len(images) > 1 or not isinstance(images[0], UploadFile):
        detail = "the form field image must be one file, as curl -F image=@boot.png sends it"
        raise Problem(422, "invalid-parameter", detail, errors=[{"parameter": "image", "detail": detail}])
    fields = [(name, value) for name, value in form.multi_items() if name != "image"]
    parameters = Parameters.gather(request.query_params.multi_items(), fields)
    return Call(await images[0].read(), parameters)


async def _parse_form(request: Request, body: bytes) -> FormData:
    async def stream() -> AsyncGenerator[bytes]:
        yield body
        yield b""

    try:
        parser = MultiPartParser(request.headers, stream(), max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS)
        return await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError) as error:
        raise Problem(400, "malformed-body", f"the body is not multipart/form-data: {error}") from error
