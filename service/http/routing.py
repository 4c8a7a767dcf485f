"""Routes, and the table that finds the route of a request."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from service.http.admission import Admission
from service.http.keys import Keys
from service.http.operations import Operation
from service.http.request_context import CLIENT_GONE
from service.schemas.problems import Problem

Endpoint = Callable[[Request], Awaitable[Response]]

# Content-Security-Policy that BentoML's page needs; our own page has a stricter one.
_POLICY = b"default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_ANY = "*"


@dataclass(frozen=True)
class Route:
    """A path, and how requests to it are answered.

    Attributes:
        path: the exact path; a "*" at the end stands for any suffix.
        method: the allowed method; GET also allows HEAD.
        endpoint: answers the requests; None for BentoML's application.
        statuses: possible statuses, apart from 200, 401 and 499.
        operation: OpenAPI description; None to omit the route from OpenAPI.
        keys: accepted keys; without keys, the route is open to everybody.
        name: name in metrics and logs; several paths may share one. The path by default.
        admission: limits the number of concurrent requests; None for no limit.
        policy: Content-Security-Policy of the answers.
    """

    path: str
    method: Literal["GET", "POST", "other"]
    endpoint: Endpoint | None
    statuses: Sequence[int]
    operation: Operation | None = None
    keys: Keys | None = None
    name: str = ""
    admission: Admission | None = None
    policy: bytes = _POLICY

    @property
    def label(self) -> str:
        """Name of the route in metrics and logs."""
        return self.name or self.path

    @property
    def methods(self) -> tuple[str, ...]:
        """The allowed methods."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)

    @property
    def counted_statuses(self) -> set[int]:
        """All possible statuses, for the metrics."""
        return {200, CLIENT_GONE, *self.statuses, *([401] if self.keys else [])}


class RouteTable:
    """All routes, and the answers to unknown paths and methods.

    Args:
        routes: the routes; each path occurs once.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = {route.path: route for route in routes}
        self._prefixes = [route for route in routes if route.path.endswith(_ANY)]
        self._unknown = Route(_ANY, "other", _not_found, (404, 405, 414, 431), name="other")
        self._not_allowed = {route.path: replace(self._unknown, endpoint=_refusal(route)) for route in routes}

    def __iter__(self) -> Iterator[Route]:
        """Yield all routes in their order; the route of unknown paths last."""
        yield from self._routes.values()
        yield self._unknown

    def match(self, path: str, method: str) -> Route:
        """Find the route for a path and a method."""
        route = self._routes.get(path)
        if route is None:
            route = next((one for one in self._prefixes if path.startswith(one.path[:-1])), self._unknown)
        if route is self._unknown or method in route.methods:
            return route
        return self._not_allowed[route.path]


async def _not_found(_: Request) -> Response:
    raise Problem("not-found", "there is no such path; POST an image to /predict")


def _refusal(route: Route) -> Endpoint:
    allowed = ", ".join(route.methods)

    async def refuse(_: Request) -> Response:
        raise Problem("method-not-allowed", f"use {allowed}", headers={"Allow": allowed})

    return refuse
