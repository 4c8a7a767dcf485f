"""Pages of other origins: which of them a browser lets read our answers (Fetch standard, CORS protocol)."""

import re
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.\-_\[\]:]+")
_OPTIONS: dict[str, Any] = {
    "allow_methods": ["GET", "HEAD", "POST"],
    "allow_headers": [
        "Authorization",
        "Content-Encoding",
        "Content-Type",
        "Inference-Header-Content-Length",
        "X-API-Key",
        "X-Request-ID",
        "traceparent",
    ],
    "expose_headers": [
        "Inference-Header-Content-Length",
        "Retry-After",
        "Server-Timing",
        "X-Request-ID",
        "traceresponse",
    ],
}


def read_origins(listed: str) -> list[str]:
    """Read origins with commas between, or "*" for any.

    Raises:
        ValueError: one is no origin.
    """
    origins = [origin.strip() for origin in listed.split(",") if origin.strip()]
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"an origin is like https://example.org:8443, without a path, or *; got {origin}")
    return origins


def with_cors(app: ASGIApp, options: dict[str, Any]) -> ASGIApp:
    """Answer preflight requests, before keys are asked for, and let browsers hand answers on.

    Args:
        app: what answers all else.
        options: of Starlette's middleware, those that are given; none for no other origins at all.
    """
    given = {name: value for name, value in options.items() if value}
    return CORSMiddleware(app, **_OPTIONS | given) if given else app
