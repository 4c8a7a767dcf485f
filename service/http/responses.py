"""Answers that endpoints make."""

from starlette.responses import Response


def json_response(body: bytes) -> Response:
    """Answer with JSON that is encoded already."""
    return Response(body, media_type="application/json")
