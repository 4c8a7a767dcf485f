"""Where requests begin and end: what the application gets of raw bytes, however they are cut into segments."""

import asyncio
import base64
from dataclasses import dataclass, field

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from service.http.connections import _GuardedProtocol

END = b"\r\n\r\n"
GET = b"GET /one HTTP/1.1\r\nHost: a"
POST = b"POST /one HTTP/1.1\r\nHost: a\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a" + END
SIZED = b"Content-Length: %d" % len(HIDDEN) + END + HIDDEN
IN_CHUNKS = b"Transfer-Encoding: chunked" + END + b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
NEXT = b"GET /next HTTP/1.1\r\nHost: a" + END
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: %b\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked" + END

# What is answered as any other request, and what comes behind it too.
GOOD = {
    "a body that looks like a request": POST + SIZED,
    "the same in chunks": POST + IN_CHUNKS,
    "h2c offered, with a body": POST + H2C + SIZED,
    "h2c offered, in chunks": POST + H2C + IN_CHUNKS,
    "h2c offered, no body": GET + b"\r\n" + H2C + b"\r\n",
    "h2c offered, an empty body": POST + H2C + b"Content-Length: 0" + END,
    "a websocket offered": GET + b"\r\n" + WEBSOCKET % base64.b64encode(bytes(16)) + b"\r\n",
    "a websocket offered, with a body": POST + WEBSOCKET % b"x" + SIZED,
    "TLS offered": POST + b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n" + SIZED,
    "several protocols offered": POST + b"Upgrade: h2c, foo/2\r\nUpgrade: bar\r\nConnection: upgrade\r\n" + SIZED,
    "an upgrade without its connection option": POST + b"Upgrade: h2c\r\n" + SIZED,
    "a connection option without an upgrade": POST + b"Connection: upgrade\r\n" + SIZED,
    "chunk extensions": CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n',
    "trailers": CHUNKED + b"5\r\nhello\r\n0\r\nX-API-Key: k\r\nContent-Encoding: gzip\r\n\r\n",
    "leading zeros in a chunk size": CHUNKED + b"005\r\nhello\r\n0\r\n\r\n",
    "codings in another case": POST + b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "a GET with a body": b"GET /one HTTP/1.1\r\nHost: a\r\n" + SIZED,
    "a DELETE with a body": b"DELETE /one HTTP/1.1\r\nHost: a\r\n" + SIZED,
    "a HEAD with a body": b"HEAD /one HTTP/1.1\r\nHost: a\r\n" + SIZED,
    "an absolute target": b"POST http://b/one HTTP/1.1\r\nHost: a\r\n" + SIZED,
    "an empty line before": b"\r\n" + POST + SIZED,
    "an unknown expectation": POST + b"Expect: something\r\n" + SIZED,
}

# What is refused, and ends the connection: nothing behind it is looked at.
BAD = {
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80" + END,
    "a tunnel with a body": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n" + SIZED,
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": b"GET /one HTTP/2.0\r\nHost: a" + END,
    "HTTP/0.9": b"GET /one HTTP/0.9\r\nHost: a" + END,
    "HTTP/1.2": b"GET /one HTTP/1.2\r\nHost: a" + END,
    "an answer": b"HTTP/1.1 200 OK\r\nHost: a\r\n" + SIZED,
    "an interim answer": b"HTTP/1.1 100 Continue" + END,
    "a target without a host": b"POST http:///one HTTP/1.1\r\nHost: a\r\n" + SIZED,
    "a target without a slash": b"POST one HTTP/1.1\r\nHost: a\r\n" + SIZED,
    "no host": b"POST /one HTTP/1.1\r\n" + SIZED,
    "two hosts": POST + b"Host: b\r\n" + SIZED,
    "the same host twice": POST + b"Host: a\r\n" + SIZED,
    "a list of hosts": b"POST /one HTTP/1.1\r\nHost: a, b\r\n" + SIZED,
    "a host with a path": b"POST /one HTTP/1.1\r\nHost: a/b\r\n" + SIZED,
    "chunks in HTTP/1.0": b"POST /one HTTP/1.0\r\nHost: a\r\n" + IN_CHUNKS,
    "a length and chunks": POST + b"Content-Length: 5\r\n" + IN_CHUNKS,
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\n" + SIZED,
    "two lengths": POST + b"Content-Length: 5\r\n" + SIZED,
    "the same length twice": POST + b"Content-Length: %d\r\n" % len(HIDDEN) + SIZED,
    "a list of lengths": POST + b"Content-Length: 5, 5" + END + HIDDEN,
    "an empty length": POST + b"Content-Length: " + END + HIDDEN,
    "a length in hexadecimal digits": POST + b"Content-Length: 0x5" + END + HIDDEN,
    "a length with a sign": POST + b"Content-Length: +5" + END + HIDDEN,
    "a length that overflows": POST + b"Content-Length: 18446744073709551621" + END + HIDDEN,
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked" + END + b"0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: gzip, chunked" + END + b"0\r\n\r\n",
    "two headers of codings": POST + b"Transfer-Encoding: identity\r\n" + IN_CHUNKS,
    "no coding": POST + b"Transfer-Encoding: identity" + END + HIDDEN,
    "chunked not last": POST + b"Transfer-Encoding: chunked, identity" + END + b"0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: xchunked" + END + HIDDEN,
    "a coding behind a vertical tab": POST + b"Transfer-Encoding: \x0bchunked" + END + b"0\r\n\r\n",
    "a folded header": POST + b"X: a\r\n b\r\n" + SIZED,
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked" + END + b"0\r\n\r\n",
    "a bare LF in the head": POST + b"X: a\n" + SIZED,
    "a bare CR in a header": POST + b"X: a\rb\r\n" + SIZED,
    "a NUL in a header": POST + b"X: a\0b\r\n" + SIZED,
    "a space before the colon": POST + b"Content-Length : 5" + END + HIDDEN,
    "a header without a name": POST + b": a\r\n" + SIZED,
    "a header without a colon": POST + b"abc\r\n" + SIZED,
    "no size of a chunk": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk with a sign": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk of 0x": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk that overflows": CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a longer chunk than it says": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "a space behind a size": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a bare LF in a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nX: a\n\r\n",
    "a length in a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 40\r\n\r\n",
    "a head of bare LF": b"GET /one HTTP/1.1\nHost: a\n\n",
    "a bare LF behind a size": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "a bare LF in an extension": CHUNKED + b"5;a\nhello\r\n0\r\n\r\n",
}  # fmt: skip


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Tests go on."""

    resume_reading = pause_reading


@dataclass
class Talk:
    """What the application got, and what was written."""

    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    headers: list[set[bytes]] = field(default_factory=list)
    wire: Wire = field(default_factory=Wire)
    refused: list[str] = field(default_factory=list)
    ended: bool = False

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.wire.written.split(b"HTTP/1.1 ")[1:] if not part.startswith(b"100")]


async def talk(*segments: bytes) -> Talk:
    found = Talk()

    async def app(scope, receive, send):
        body, more = b"", scope["path"] != "/early"  # which is answered before its body is read
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        found.requests.append((scope["method"], scope["path"], body))
        found.headers.append({name for name, _ in scope["headers"]})
        await asyncio.sleep(0)  # others get a turn before the answer
        length = b"%d" % len(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    class Protocol(_GuardedProtocol):
        head_seconds = 60.0
        refused = staticmethod(found.refused.append)

    config = uvicorn.Config(app, http=Protocol, log_config=None, access_log=False)
    protocol = Protocol(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(found.wire)
    for segment in segments:
        protocol.data_received(segment)
        for _ in range(8 + 8 * segment.count(b"HTTP/1.1")):
            await asyncio.sleep(0)
    found.ended = found.wire.closed
    protocol.connection_lost(None)
    for _ in range(4):
        await asyncio.sleep(0)
    return found


def cuts(data: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and in two at every place."""
    in_two = [[data[:place], data[place:]] for place in range(1, len(data))]
    return [[data], [data[place : place + 1] for place in range(len(data))], *in_two]


def read_by_h11(data: bytes) -> list[tuple[str, str, bytes]]:
    """What another parser takes the same bytes for."""
    connection, found = h11.Connection(h11.SERVER), []
    connection.receive_data(data)
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            path = event.target.decode().removeprefix("http://b")
            found.append([event.method.decode(), path, b""])
        elif isinstance(event, h11.Data):
            found[-1][2] += event.data
        elif isinstance(event, h11.EndOfMessage):
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
        elif event is h11.PAUSED:
            connection.start_next_cycle()
        else:
            return [tuple(one) for one in found]


@pytest.mark.parametrize("name", GOOD)
def test_a_request_ends_where_it_says_however_it_is_cut(name):
    data = GOOD[name] + NEXT
    expected = read_by_h11(data.lstrip())  # empty lines before a request are passed over (RFC 9112, 2.2)
    assert [path for _, path, _ in expected] == ["/one", "/next"]

    async def all_cuts() -> None:
        for segments in cuts(data):
            found = await talk(*segments)
            assert found.requests == expected, segments
            assert found.statuses == [200, 200], segments
            assert not found.ended

    asyncio.run(all_cuts())


@pytest.mark.parametrize("name", BAD)
def test_ambiguous_framing_is_refused_and_ends_reading(name):
    async def all_cuts() -> None:
        for segments in cuts(NEXT + BAD[name] + HIDDEN):
            found = await talk(*segments)
            assert found.requests == [("GET", "/next", b"")], segments
            assert found.statuses == [200, 400], segments
            assert found.ended
            assert found.refused == ["malformed-request"]

    asyncio.run(all_cuts())


def test_a_trailer_is_no_header():
    found = asyncio.run(talk(GOOD["trailers"]))
    assert found.headers == [{b"host", b"transfer-encoding"}]


def test_a_trailer_that_closes_ends_the_connection_behind_its_answer():
    data = CHUNKED + b"5\r\nhello\r\n0\r\nConnection: close\r\n\r\n" + NEXT

    async def all_cuts() -> None:
        for segments in cuts(data):
            found = await talk(*segments)
            assert found.requests == [("POST", "/one", b"hello")], segments
            assert found.statuses == [200], segments
            assert found.ended, segments
            assert b"connection: close" in found.wire.written

    asyncio.run(all_cuts())


def test_trailer_after_early_answer_closes_connection():
    head = b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked" + END
    last = b"0\r\nConnection: close\r\n\r\n"
    found = asyncio.run(talk(head, b"5\r\nhello\r\n", last, NEXT))
    assert (found.statuses, found.ended) == ([200], True)
    found = asyncio.run(talk(head, b"5\r\nhello\r\n", b"0\r\n\r\n", NEXT))
    assert (found.statuses, found.ended) == ([200, 200], False)


def test_what_was_offered_is_not_passed_on():
    found = asyncio.run(talk(GOOD["h2c offered, with a body"]))
    assert found.headers == [{b"host", b"connection", b"content-length"}]


def test_http_1_0_is_answered_once():
    for head in (b"GET /one HTTP/1.0", b"GET /one HTTP/1.0\r\nHost: a", b"GET /one HTTP/1.0\r\nExpect: 100-continue"):
        found = asyncio.run(talk(head + END + HIDDEN))
        assert [path for _, path, _ in found.requests] == ["/one"]
        assert found.statuses == [200]
        assert found.ended
        assert b"100 Continue" not in found.wire.written


def test_expect_100_continue_is_answered():
    found = asyncio.run(talk(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n", b"hello"))
    assert found.requests == [("POST", "/one", b"hello")]
    assert found.wire.written.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


def test_requests_that_come_together_are_answered_in_order():
    paths = [f"/{number}" for number in range(50)]
    data = b"".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths)
    found = asyncio.run(talk(data))
    assert [path for _, path, _ in found.requests] == paths
    places = [found.wire.written.index(f"\r\n\r\n{path}HTTP".encode()) for path in paths[:-1]]
    assert places == sorted(places)


def test_requests_that_wait_on_one_connection_are_bounded():
    found = asyncio.run(talk(NEXT * 1000))
    assert 100 <= len(found.requests) <= 102
    assert found.statuses == [200] * len(found.requests) + [400]


@pytest.mark.parametrize("endless", [b"5;" + b"a" * 2**17, b"0\r\nX: " + b"a" * 2**17, b"0\r\n" + b"X: a\r\n" * 2**15])
def test_extensions_and_trailers_are_bounded(endless):
    parts = [endless[start : start + 1000] for start in range(0, len(endless), 1000)]
    found = asyncio.run(talk(CHUNKED, *parts))
    assert found.statuses == [431]
    assert found.ended


def test_many_upgrade_offers_in_one_segment_are_read():
    found = asyncio.run(talk(GOOD["h2c offered, with a body"] * 40))
    assert found.requests == [("POST", "/one", HIDDEN)] * 40
