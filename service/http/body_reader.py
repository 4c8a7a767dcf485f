"""Reads request bodies within limits on size, duration, compression and total memory."""

import asyncio
import zlib

import anyio
from starlette.requests import Request
from starlette.types import Scope

from service.http.admission import overloaded
from service.schemas.problems import Problem
from service.settings import Settings

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # zlib detects which by the header
_RAW_DEFLATE = -zlib.MAX_WBITS
_GZIP = b"\x1f\x8b"
_MAX_MEMBERS = 1000  # of a gzip body
_HEADER_BYTES = 2**14
_ENCODINGS = ("gzip", "x-gzip", "deflate")


def check_headers(scope: Scope, limits: Settings) -> None:
    """Refuse a query or headers larger than ordinary clients send.

    Raises:
        Problem: 414 for a long query, 431 for many or large headers.
    """
    if len(scope["query_string"]) > limits.max_query_bytes:
        raise Problem("uri-too-long", f"the query must have at most {limits.max_query_bytes} bytes")
    headers = scope["headers"]
    if len(headers) > limits.max_headers or sum(map(len, (part for pair in headers for part in pair))) > _HEADER_BYTES:
        detail = f"a request may have at most {limits.max_headers} headers, of {_HEADER_BYTES} bytes in total"
        raise Problem("headers-too-large", detail)


class BodyReader:
    """Reads request bodies within the limits of a worker.

    Args:
        settings: the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._buffered = 0

    async def read(self, request: Request) -> bytes:
        """Read a body.

        Raises:
            ClientDisconnect: the client disconnected before the end of the body.
            Problem: 400 for invalid compressed data, 408 for a body that arrives too slowly, 413 for too many bytes
                before or after decompression, 415 for an unsupported compression, 503 if all bodies of the worker
                together exceed the memory limit.
        """
        limit, seconds = self._settings.max_body_bytes, self._settings.max_upload_seconds
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {*_ENCODINGS, "identity", ""}:
            supported = ", ".join(_ENCODINGS)
            headers = {"Accept-Encoding": supported}
            raise Problem("unsupported-encoding", f"the body may be compressed by {supported}", headers=headers)
        try:
            async with asyncio.timeout(seconds):
                body = await self._receive(request, limit)
        except TimeoutError as error:
            raise Problem("upload-too-slow", f"the body took longer than {seconds:g} seconds") from error
        if encoding in _ENCODINGS:
            return await anyio.to_thread.run_sync(_decompress, body, limit, encoding)
        return bytes(body)

    async def _receive(self, request: Request, limit: int) -> bytearray:
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                self._buffered += len(chunk)
                if len(body) > limit:
                    raise _too_large(limit)
                if self._buffered > self._settings.max_buffered_bytes:
                    raise overloaded("too many bytes are being uploaded")
        finally:
            self._buffered -= len(body)
        return body


def _decompress(body: bytearray, limit: int, encoding: str) -> bytes:
    """Decompress gzip with any number of members (RFC 1952, 2.2), or deflate with or without a zlib header."""
    decompressed, rest = b"", bytes(body)
    wbits = _RAW_DEFLATE if encoding == "deflate" and not _has_zlib_header(rest) else _GZIP_OR_ZLIB
    members = 0
    while rest and members < _MAX_MEMBERS:
        inflater = zlib.decompressobj(wbits)
        try:
            decompressed += inflater.decompress(rest, limit + 1 - len(decompressed))
        except zlib.error as error:
            raise Problem("malformed-body", f"the body can't be decompressed: {error}") from error
        if len(decompressed) > limit:
            raise _too_large(limit)
        if not inflater.eof:
            break
        members += 1
        rest = (
            inflater.unused_data if inflater.unused_data.strip(b"\0") else b""
        )  # a gzip file may be padded with zeros
        if rest and not rest.startswith(_GZIP):
            break
    if rest or not members:
        raise Problem(
            "malformed-body", "the body can't be decompressed: it is cut off, or data follows the compressed data"
        )
    return decompressed


def _has_zlib_header(body: bytes) -> bool:
    """Whether a deflate body starts with a zlib header (RFC 1950, 2.2), which many clients omit."""
    return len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _too_large(limit: int) -> Problem:
    return Problem("body-too-large", f"the body must have at most {limit} bytes")
