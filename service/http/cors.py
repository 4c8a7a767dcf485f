"""Cross-origin resource sharing: which other origins' pages may read our answers (Fetch standard, CORS protocol)."""

from collections.abc import Mapping
from typing import Any

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


def cors_options(configured: Mapping[str, Any]) -> dict[str, Any]:
    """Options of Starlette's `CORSMiddleware`, with our defaults; empty if no other origin is allowed.

    Args:
        configured: configured options; those with empty values are ignored.
    """
    options = {name: value for name, value in configured.items() if value}
    return _OPTIONS | options if options else {}
