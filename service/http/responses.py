"""Responses of endpoints."""

from starlette.responses import Response


def json_response(body: bytes) -> Response:
    """Make a response from encoded JSON."""
    return Response(body, media_type="application/json")
