"""Pages of other origins: which of them a browser lets read our answers (Fetch standard, CORS protocol)."""

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


def cors_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of Starlette's `CORSMiddleware`, with ours as defaults; none where no other origin may ask.

    Args:
        given: options that are set; empty ones are not.
    """
    found = {name: value for name, value in given.items() if value}
    return _OPTIONS | found if found else {}
