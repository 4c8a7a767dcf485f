"""Routes, and how a request finds the one that answers it."""

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

# What BentoML's page needs; ours have a stricter policy.
_POLICY = b"default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_ANY = "*"


@dataclass(frozen=True)
class Route:
    """What answers at a path.

    Attributes:
        path: as it is requested; with "*" at its end, all paths that begin so.
        method: that is understood; HEAD is where GET is.
        endpoint: answers; None if BentoML's application does.
        statuses: that it may answer with, apart from 200, 401 and 499.
        operation: what OpenAPI says of it; None where it says nothing.
        keys: that open it; without any it is open to all.
        name: what metrics and logs call it; paths that answer alike may share one. The path unless it is given.
        admission: how many requests are in work at once; None for any number.
        policy: what browsers may load for what is answered (Content-Security-Policy).
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
        """What metrics and logs call it."""
        return self.name or self.path

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that are understood."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)

    @property
    def counted_statuses(self) -> set[int]:
        """Those that its answers may have."""
        return {200, CLIENT_GONE, *self.statuses, *([401] if self.keys else [])}


class RouteTable:
    """All routes, and what answers where there is none.

    Args:
        routes: each path once.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = {route.path: route for route in routes}
        self._prefixes = [route for route in routes if route.path.endswith(_ANY)]
        self._unknown = Route(_ANY, "other", _not_found, (404, 405, 414, 431), name="other")
        self._not_allowed = {route.path: replace(self._unknown, endpoint=_refusal(route)) for route in routes}

    def __iter__(self) -> Iterator[Route]:
        """Yield all routes, in the order in which they were given; that of unknown paths last."""
        yield from self._routes.values()
        yield self._unknown

    def match(self, path: str, method: str) -> Route:
        """Find what answers to a method at a path."""
        route = self._routes.get(path)
        if route is None:
            route = next((one for one in self._prefixes if path.startswith(one.path[:-1])), self._unknown)
        if route is self._unknown or method in route.methods:
            return route
        return self._not_allowed[route.path]


async def _not_found(_: Request) -> Response:
    raise Problem("not-found", "there is nothing at this path; POST an image to /predict")


def _refusal(route: Route) -> Endpoint:
    allowed = ", ".join(route.methods)

    async def refuse(_: Request) -> Response:
        raise Problem("method-not-allowed", f"use {allowed}", headers={"Allow": allowed})

    return refuse
