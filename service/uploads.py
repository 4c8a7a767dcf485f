"""Bodies on their way in: how large, how slow, how compressed, and how much of them at once."""

import asyncio
import zlib

import anyio
from starlette.requests import Request
from starlette.types import Scope

from service.admission import overloaded
from service.problems import Problem
from service.settings import Settings

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # told apart by their headers
_ENCODINGS = ("gzip", "x-gzip", "deflate")


class Uploads:
    """Reads bodies within the limits of a worker.

    Args:
        settings: the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._buffered = 0

    def check_headers(self, scope: Scope) -> None:
        """Refuse what no honest client sends.

        Raises:
            Problem: 414 for a long query, 431 for many or large headers.
        """
        limits = self._settings
        if len(scope["query_string"]) > limits.max_query_bytes:
            raise Problem("uri-too-long", f"the query must have at most {limits.max_query_bytes} bytes")
        headers = scope["headers"]
        if len(headers) > limits.max_headers or sum(map(len, (part for pair in headers for part in pair))) > 2**14:
            detail = f"a request may have {limits.max_headers} headers of {2**14} bytes together"
            raise Problem("headers-too-large", detail)

    async def body(self, request: Request) -> bytes:
        """Read a body.

        Raises:
            ClientDisconnect: it didn't come to its end.
            Problem: 400 for broken compression, 408 for one that comes too slowly, 413 for too many bytes, also after
                decompression, 415 for an unknown compression, 503 for too much at once.
        """
        limit, seconds = self._settings.max_body_bytes, self._settings.max_upload_seconds
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {*_ENCODINGS, "identity", ""}:
            known = ", ".join(_ENCODINGS)
            headers = {"Accept-Encoding": known}
            raise Problem("unsupported-encoding", f"the body may be compressed by {known}", headers=headers)
        try:
            async with asyncio.timeout(seconds):
                body = await self._received(request, limit)
        except TimeoutError as error:
            raise Problem("upload-too-slow", f"the body took longer than {seconds:g} seconds") from error
        if encoding in _ENCODINGS:
            return await anyio.to_thread.run_sync(_inflated, body, limit)
        return bytes(body)

    async def _received(self, request: Request, limit: int) -> bytearray:
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                self._buffered += len(chunk)
                if len(body) > limit:
                    raise _too_large(limit)
                if self._buffered > self._settings.max_buffered_bytes:
                    raise overloaded("too much is being uploaded")
        finally:
            self._buffered -= len(body)
        return body


def _inflated(body: bytearray, limit: int) -> bytes:
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise Problem("malformed-body", f"the body can't be decompressed: {error}") from error
    if len(inflated) > limit:
        raise _too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise Problem("malformed-body", "the body can't be decompressed: it has another end than its compression")
    return inflated


def _too_large(limit: int) -> Problem:
    return Problem("body-too-large", f"the body must have at most {limit} bytes")
