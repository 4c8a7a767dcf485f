"""What every request passes on its way to its route, and every answer on its way back: the outermost first."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.body_reader import check_headers
from service.http.open_inference.metadata import is_open_inference
from service.http.request_context import CLIENT_GONE, RequestContext
from service.http.routing import Route, RouteTable
from service.monitoring.logs import LOGGER
from service.monitoring.metrics import Metrics
from service.schemas.problems import Problem, internal_error
from service.settings import Settings

if TYPE_CHECKING:  # an extra, imported where it is configured
    from service.http.tracing import Tracing

_ROUTE = "mcd.route"  # in the scope
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


def middlewares(
    table: RouteTable, *, metrics: Metrics, settings: Settings, cors: Mapping[str, Any], tracing: "Tracing | None"
) -> list[Middleware]:
    """List what stands before the routes.

    Args:
        table: the routes.
        metrics: where requests are counted.
        settings: limits.
        cors: options of `CORSMiddleware`; none where no other origin may ask.
        tracing: of requests, if they are traced.
    """
    return [
        *([Middleware(CORSMiddleware, **cors)] if cors else []),
        Middleware(RequestContextMiddleware, table=table),
        Middleware(MetricsMiddleware, metrics=metrics),
        *([Middleware(TracingMiddleware, tracing=tracing)] if tracing else []),
        Middleware(SecurityHeadersMiddleware),
        Middleware(ProblemMiddleware, metrics=metrics),
        Middleware(LimitsMiddleware, settings=settings),
        Middleware(KeysMiddleware),
    ]


def route_of(scope: Scope) -> Route:
    """The route that answers a request."""
    found: Route = scope[_ROUTE]
    return found


class RequestContextMiddleware:
    """Finds the route, makes the request's context, adds its headers to the answer, and writes the log line."""

    def __init__(self, app: ASGIApp, table: RouteTable) -> None:
        self._app, self._table = app, table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        route = scope[_ROUTE] = self._table.match(scope["path"], scope["method"])
        context = RequestContext(scope)
        context.route = route.label

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *context.answer_headers()]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            context.log()


class MetricsMiddleware:
    """Counts requests, and what their stages take."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        context = RequestContext.of(scope)
        self._metrics.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            context.end()
            self._metrics.request(context.route, route_of(scope).method, context.status, context.seconds)
            if "images" in context.notes:
                self._metrics.stages(context.timings.seconds, context.notes["images"])


class TracingMiddleware:
    """Makes a span of each request."""

    def __init__(self, app: ASGIApp, tracing: "Tracing") -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        context = RequestContext.of(scope)
        span = self._tracing.start(context)
        try:
            await self._app(scope, receive, send)
        finally:
            self._tracing.end(span, context, method=route_of(scope).method)


class SecurityHeadersMiddleware:
    """Limits what browsers do with an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        policy = (b"content-security-policy", route_of(scope).policy)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_SECURITY_HEADERS, policy]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class ProblemMiddleware:
    """Answers problems; what nobody expected is logged, and answered as an internal error."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        context = RequestContext.of(scope)
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return  # nobody waits for an answer; it is counted as 499
        except Problem as raised:
            problem = raised
        except Exception:
            LOGGER.exception("failure", extra={"fields": {"request_id": context.request_id}})
            if context.status != CLIENT_GONE:  # an answer has begun: nothing can be said any more
                raise
            problem = internal_error(context.request_id)
        else:
            return
        context.notes["problem"] = problem.kind
        self._metrics.rejected(problem.kind)
        body = problem.body(with_error=is_open_inference(scope["path"]))
        response = Response(body, problem.status, problem.headers, "application/problem+json")
        await response(scope, receive, send)


class LimitsMiddleware:
    """Refuses a request before anything of its body is read: one too many, or one with too large a head."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            Problem: 414 for a long query, 431 for many or large headers, 503 for too much work.
        """
        route = route_of(scope)
        if route.admission is not None:
            route.admission.check()
        if route.endpoint is not None:
            check_headers(scope, self._settings)
        await self._app(scope, receive, send)


class KeysMiddleware:
    """Refuses who has no key for the route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            Problem: 401 for a missing or unknown key.
        """
        keys = route_of(scope).keys
        if keys is not None:
            keys.check(RequestContext.of(scope).headers)
        await self._app(scope, receive, send)


class Endpoints:
    """Has each request answered by its route, or by BentoML's application where that has no endpoint.

    Args:
        bentoml_app: what answers those.
    """

    def __init__(self, bentoml_app: ASGIApp) -> None:
        self._bentoml_app = bentoml_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        endpoint = route_of(scope).endpoint
        answer = self._bentoml_app if endpoint is None else await endpoint(Request(scope, receive))
        await answer(scope, receive, send)
