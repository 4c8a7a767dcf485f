"""Bytes that are no valid HTTP, or too many of them, on real connections."""

import httpx
import psutil
import pytest
from raw_http import connect, exchange
from server import Server

HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n"


SMUGGLED = {
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "length and chunks": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\nhello",
    "length of words": HEAD + b"Content-Length: five\r\n\r\nhello",
    "length with a sign": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "huge length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "large length": HEAD + b"Content-Length: 9999999999\r\n\r\nhello",
    "broken chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
    "negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "unknown coding": HEAD + b"Transfer-Encoding: gzip, chunked, x\r\n\r\nhello",
    "space before the colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "folded header": HEAD + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "NUL in a header": HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "no protocol": b"POST /predict\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "HTTP/3.0": b"POST /predict HTTP/3.0\r\nHost: a\r\n\r\n",
    "no method": b" /predict HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the path": b"GET /pre\0dict HTTP/1.1\r\nHost: a\r\n\r\n",
    "traversal": b"GET /static_content/../../../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "encoded traversal": b"GET /static_content/%2e%2e/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
}


def memory(server: Server) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in server.worker_pids)


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_malformed_request_is_refused_once(server: Server, client: httpx.Client, name: str) -> None:
    with connect(server.url) as connection:
        connection.sendall(SMUGGLED[name])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("one", [b"x" * 2**16, b"X: " + b"x" * 2**12 + b"\r\n"])
def test_an_endless_head_takes_no_memory(server: Server, one: bytes) -> None:
    before = memory(server)
    for start in (GET, GET + b"X-endless: ", b"GET /"):
        for _ in range(3):
            answer = exchange(server.url, [start, *[one * (2**20 // len(one))] * 30])
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
    assert memory(server) < before + 2**24


def test_a_head_that_is_too_long_gets_431(server: Server) -> None:
    assert exchange(server.url, [GET + b"X: " + b"x" * 2**16]).startswith(b"HTTP/1.1 431")


def test_a_body_refused_early_may_be_sent_to_its_end(server: Server) -> None:
    size = 2 * 10**7
    head = HEAD + f"Content-Length: {size}\r\n\r\n".encode()
    answer = exchange(server.url, [head, *[bytes(size // 20)] * 20, GET + b"Connection: close\r\n\r\n"])
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"413", b"200"]
