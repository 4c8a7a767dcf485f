"""Limits on connections: the size of a request's head, the time until it is complete, and where a request ends.

uvicorn has no such limits, so a client could fill the memory with one header, or hold idle connections open.
If a proxy in front saw another end of a request, the rest could pass as a second request (request smuggling, RFC 9112,
11.2).
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

_HEAD_BYTES = 2**16  # request line and headers; `body_reader.check_headers` has a lower limit and a clearer message
_MAX_PIPELINED = 100  # requests that wait on one connection
_UPGRADE_HEADERS = {b"upgrade", b"http2-settings"}
_FRAMING = (b"host", b"transfer-encoding", b"content-length")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=%:\[\]-]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")


def guard_connections(settings: Settings, metrics: Metrics) -> None:
    """Make uvicorn apply these limits to all connections of this process, and count refused requests."""

    class Protocol(_GuardedProtocol):
        head_seconds = settings.max_upload_seconds
        refused = staticmethod(metrics.rejected)

    protocols: dict[str, Any] = uvicorn.config.HTTP_PROTOCOLS  # uvicorn accepts a class instead of a class name
    protocols["auto"] = Protocol


class _GuardedProtocol(HttpToolsProtocol):
    head_seconds: float
    refused: Callable[[str], None]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unfinished = 0  # bytes received of an incomplete head, or of a chunked body's framing
        self._in_body = False
        self._offers_upgrade = False
        self._current_cycle: RequestResponseCycle | None = None
        self._refusal: Problem | None = None  # ends the connection after all earlier requests are answered
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return  # the start of the next request is unknown
        self._unset_keepalive_if_required()
        self._unfinished += len(data)
        self._feed(data)
        if self._refusal is not None or self.transport.is_closing():
            return
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering:
            self._wait()  # for a head, or for the rest of a body that the application does not read
        if self._unfinished > _HEAD_BYTES:
            self._refuse(
                Problem("headers-too-large", f"a request's head or trailer may have at most {_HEAD_BYTES} bytes")
            )

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # The body follows: the parser would treat it as another protocol, then as the next request.
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = _new_parser(self)
            except httptools.HttpParserError:
                self._refuse(Problem("malformed-request", "this is not HTTP/1.1"))
                return
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        """Rewrite the head of a request without its upgrade offer, which a server may ignore (RFC 9110, 7.8)."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                lines.append(
                    b"connection: " + b", ".join(one for one in options if one.lower() not in _UPGRADE_HEADERS)
                )
            elif name not in _UPGRADE_HEADERS:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        self._offers_upgrade = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # ignore trailers: the headers have already been processed
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        _check_framing(version, self.parser.get_method(), self.headers)
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        if self.parser.should_upgrade():
            self._offers_upgrade = True
            return
        self.expect_100_continue &= version == "1.1"
        super().on_headers_complete()  # may refuse the request target
        self._stop_waiting()
        self._unfinished, self._in_body = 0, True

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offers_upgrade:
            return  # the parser gets the request again, without the offer
        self._stop_waiting()
        self._unfinished, self._in_body = 0, False
        super().on_message_complete()
        if not self.parser.should_keep_alive():  # a trailer may also say so; then the parser skips all later data
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current_cycle = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refusal is not None:
            self._end_refused()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._end_waiting)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_waiting(self) -> None:
        if self._unfinished and not self._in_body:
            self._refuse(Problem("upload-too-slow", f"the head took longer than {self.head_seconds:g} seconds"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Stop reading this connection, and answer with a problem after all earlier requests are answered."""
        self._stop_waiting()
        self._refusal = problem
        self.refused(problem.kind)
        if self._in_body:
            self._give_up(self.cycle)
        self.flow.pause_reading()
        self._end_refused()

    def _give_up(self, cycle: RequestResponseCycle) -> None:
        """End a request whose body can't be read completely."""
        waiting = [one for one in self.pipeline if one[0] is not cycle]
        if len(waiting) < len(self.pipeline):
            self.pipeline = deque(waiting)
        elif cycle.response_started:
            self.transport.close()  # all or part of the response has been sent
        else:
            cycle.disconnected = True
            cycle.message_event.set()

    def _end_refused(self) -> None:
        """Send the refusal and close the connection, unless earlier requests still wait for their answers."""
        running = self._current_cycle
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
    """Make a parser with the same options as uvicorn."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _check_framing(version: str, method: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse requests of ambiguous length or host, which a proxy may interpret differently (RFC 9112, 3.2, 6.1, 11.2).

    Raises:
        ValueError: the length or the host is ambiguous.
    """
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _FRAMING:
            values.setdefault(name, []).append(value.strip(b" \t"))
    hosts, codings, lengths = (values.get(name, []) for name in _FRAMING)
    if version not in {"1.0", "1.1"} or method == b"CONNECT":
        raise ValueError("the version must be 1.0 or 1.1, and the method not CONNECT")
    if len(hosts) > 1 or (version == "1.1" and not hosts) or not all(map(_HOST.fullmatch, hosts)):
        raise ValueError("a request must have one valid Host header")
    if codings and (version == "1.0" or lengths or [one.lower() for one in codings] != [b"chunked"]):
        raise ValueError("a body must be either chunked or have a Content-Length")
    if len(lengths) > 1 or not all(map(_DIGITS.fullmatch, lengths)):
        raise ValueError("a request may have one Content-Length, a decimal number")
