"""Files made of the served model: browsers keep a copy, and ask whether it is current."""

import hashlib

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

NO_CACHE = "no-cache"  # browsers ask whether their copy is current
_REVALIDATION = StaticFiles()


def send_file(content: bytes, media_type: str, request: Request) -> Response:
    """Send a file, or 304 if the browser's copy is current (RFC 9110, 13.1.2)."""
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": NO_CACHE}
    if _REVALIDATION.is_not_modified(Headers(headers), request.headers):
        return NotModifiedResponse(Headers(headers))
    return Response(content, headers=headers, media_type=media_type)
