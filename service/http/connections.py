"""Connections before there is a request: how long its head may be and take to come, and where the request ends.

uvicorn bounds neither, so that a client could fill the memory with one header, or hold connections that ask nothing.
Where a request could end elsewhere for a proxy in front, its bytes could be taken for another request (RFC 9112, 11.2).
"""

import asyncio
import http
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import httptools
import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.monitoring.metrics import Metrics
from service.schemas.problems import Problem
from service.settings import Settings

_HEAD_BYTES = 2**16  # request line and headers; the edge allows less, and tells more about it
_MOST_PIPELINED = 100  # requests that wait on one connection
_HOP_OF_UPGRADE = {b"upgrade", b"http2-settings"}
_FRAMING = (b"host", b"transfer-encoding", b"content-length")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=%:\[\]-]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")


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
        self._unfinished = 0  # bytes of a head, or of a body's framing, as far as it came
        self._in_body = False
        self._offers_upgrade = False
        self._running: RequestResponseCycle | None = None
        self._refusal: Problem | None = None  # which ends the connection, once what came before it is answered
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return  # where the next request would begin is not known
        self._unset_keepalive_if_required()
        self._unfinished += len(data)
        self._feed(data)
        if self._refusal is not None or self.transport.is_closing():
            return
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering:
            self._wait()  # for a head, or for the rest of a body that nobody reads
        if self._unfinished > _HEAD_BYTES:
            self._refuse(Problem("headers-too-large", f"a request's head, or trailer, may have {_HEAD_BYTES} bytes"))

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # What follows is the body: the parser would take it for another protocol, then for the next request.
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = _new_parser(self)
            except httptools.HttpParserError:
                self._refuse(Problem("malformed-request", "this is not HTTP/1.1"))
                return
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        """Write the head of a request again without its offer to upgrade, which may be ignored (RFC 9110, 7.8)."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                lines.append(b"connection: " + b", ".join(one for one in options if one.lower() not in _HOP_OF_UPGRADE))
            elif name not in _HOP_OF_UPGRADE:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        self._offers_upgrade = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # a trailer is none of the headers, which have been acted on
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        _check_framing(version, self.parser.get_method(), self.headers)
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise ValueError("too many requests are sent before the first is answered")
        if self.parser.should_upgrade():
            self._offers_upgrade = True
            return
        self.expect_100_continue &= version == "1.1"
        super().on_headers_complete()  # which may refuse the target
        self._stop_waiting()
        self._unfinished, self._in_body = 0, True

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offers_upgrade:
            return  # it comes again, without
        self._stop_waiting()
        self._unfinished, self._in_body = 0, False
        super().on_message_complete()
        if not self.parser.should_keep_alive():  # a trailer may say so too, and the parser skips all that follows
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refusal is not None:
            self._end_refused()

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.head_seconds, self._end_waiting)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end_waiting(self) -> None:
        if self._unfinished and not self._in_body:
            self._refuse(Problem("upload-too-slow", f"the head took longer than {self.head_seconds:g} seconds"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer in its turn what can't be read, and read no more of this connection."""
        self._stop_waiting()
        self._refusal = problem
        self.refused(problem.kind)
        if self._in_body:
            self._give_up(self.cycle)
        self.flow.pause_reading()
        self._end_refused()

    def _give_up(self, cycle: RequestResponseCycle) -> None:
        """End a request whose body can't be read to its end."""
        waiting = [one for one in self.pipeline if one[0] is not cycle]
        if len(waiting) < len(self.pipeline):
            self.pipeline = deque(waiting)
        elif cycle.response_started:
            self.transport.close()  # it has its answer, or a part of it
        else:
            cycle.disconnected = True
            cycle.message_event.set()

    def _end_refused(self) -> None:
        """Send the refusal and close, unless requests before it still wait for their answers."""
        running = self._running
        is_answering = running is not None and not (running.response_complete or running.disconnected)
        if self._refusal is None or is_answering or self.pipeline or self.transport.is_closing():
            return
        body = self._refusal.body()
        status = http.HTTPStatus(self._refusal.status)
        head = (
            f"HTTP/1.1 {status} {status.phrase}\r\n"
            f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _new_parser(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """Make one as uvicorn does."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _check_framing(version: str, method: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse what others may read as a request of another length, or for another host (RFC 9112, 3.2, 6.1 and 11.2).

    Raises:
        ValueError: it is such a request.
    """
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _FRAMING:
            values.setdefault(name, []).append(value.strip(b" \t"))
    hosts, codings, lengths = (values.get(name, []) for name in _FRAMING)
    if version not in {"1.0", "1.1"} or method == b"CONNECT":
        raise ValueError("neither other versions nor tunnels are served")
    if len(hosts) > 1 or (version == "1.1" and not hosts) or not all(map(_HOST.fullmatch, hosts)):
        raise ValueError("a request has one Host")
    if codings and (version == "1.0" or lengths or [one.lower() for one in codings] != [b"chunked"]):
        raise ValueError("a body is chunked, or has a length")
    if len(lengths) > 1 or not all(map(_DIGITS.fullmatch, lengths)):
        raise ValueError("a length is one number")
