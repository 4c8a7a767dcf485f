"""Connections before there is a request: how long its head may be, and how long it may take to come.

uvicorn bounds neither, so that a client could fill the memory with one header, or hold connections that ask nothing.
"""

import asyncio
import http
from collections.abc import Callable
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.metrics import Metrics
from service.problems import Problem
from service.settings import Settings

_HEAD_BYTES = 2**16  # request line and headers; the edge allows less, and tells more about it


def guard_connections(settings: Settings, metrics: Metrics) -> None:
    """Let uvicorn serve all connections of this process that way, and count what is refused."""

    class Protocol(_GuardedProtocol):
        head_seconds = settings.max_upload_seconds
        refused = staticmethod(metrics.rejected)

    protocols: dict[str, Any] = uvicorn.config.HTTP_PROTOCOLS  # a class may stand for its name
    protocols["auto"] = Protocol


class _GuardedProtocol(HttpToolsProtocol):
    head_seconds: float
    refused: Callable[[str], None]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unfinished = 0  # bytes of a head, as far as it came
        self._in_body = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._unfinished += len(data)
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.is_closing():
            return
        self._wait()  # for a head, or for the rest of a body that nobody reads
        if self._unfinished > _HEAD_BYTES:
            self._refuse(Problem("headers-too-large", f"a request's head may have {_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._unfinished, self._in_body = 0, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        self._refuse(Problem("malformed-request", "this is not HTTP/1.1"))

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.head_seconds, self._end_waiting)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end_waiting(self) -> None:
        if self._unfinished:
            self._refuse(Problem("upload-too-slow", f"the head took longer than {self.head_seconds:g} seconds"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        self._stop_waiting()
        self.refused(problem.kind)
        body = problem.body()
        head = (
            f"HTTP/1.1 {problem.status} {http.HTTPStatus(problem.status).phrase}\r\n"
            f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
