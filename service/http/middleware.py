"""The middlewares that wrap every route, and the innermost application, which calls the route's endpoint."""

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

if TYPE_CHECKING:  # an optional dependency, imported only if tracing is configured
    from service.http.tracing import Tracing

_ROUTE = "mcd.route"  # key in the ASGI scope
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


def middlewares(
    table: RouteTable, *, metrics: Metrics, settings: Settings, cors: Mapping[str, Any], tracing: "Tracing | None"
) -> list[Middleware]:
    """List the middlewares, the outermost first.

    Args:
        table: the routes.
        metrics: count the requests.
        settings: limits.
        cors: options of `CORSMiddleware`; empty if no other origin is allowed.
        tracing: traces requests; None for no tracing.
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
    route: Route = scope[_ROUTE]
    return route


class RequestContextMiddleware:
    """Finds the route, creates the request context, adds its headers to the answer, and writes the log line."""

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
    """Counts requests, and measures the duration of their stages."""

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
    """Records a span for each request."""

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
    """Adds headers that restrict what browsers do with an answer."""

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
    """Turns problems into answers; logs unexpected errors and answers them as an internal error."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        context = RequestContext.of(scope)
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return  # no client waits for an answer; it is counted as 499
        except Problem as raised:
            problem = raised
        except Exception:
            LOGGER.exception("failure", extra={"fields": {"request_id": context.request_id}})
            if context.status != CLIENT_GONE:  # the response has started: its status can't change any more
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
    """Refuses requests before their body is read: too many at once, or too large a query or headers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            Problem: 414 for a long query, 431 for many or large headers, 503 for too many requests at once.
        """
        route = route_of(scope)
        if route.admission is not None:
            route.admission.check()
        if route.endpoint is not None:
            check_headers(scope, self._settings)
        await self._app(scope, receive, send)


class KeysMiddleware:
    """Refuses requests without an accepted key for the route."""

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
    """Calls the endpoint of the request's route, or BentoML's application if the route has no endpoint.

    Args:
        bentoml_app: answers requests to routes without an endpoint.
    """

    def __init__(self, bentoml_app: ASGIApp) -> None:
        self._bentoml_app = bentoml_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        endpoint = route_of(scope).endpoint
        answer = self._bentoml_app if endpoint is None else await endpoint(Request(scope, receive))
        await answer(scope, receive, send)
