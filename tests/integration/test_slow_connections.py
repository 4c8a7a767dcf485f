"""Clients that send too slowly, or nothing, on real connections."""

import itertools
import time
from collections.abc import Iterator

import httpx
import pytest
from application import url_of
from raw_http import exchange
from server import ROOT

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
LIMIT_SECONDS = 0.4
PAUSE = LIMIT_SECONDS / 8


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with url_of(MCD_MAX_UPLOAD_SECONDS=str(LIMIT_SECONDS)) as served:
        yield served


def assert_served(url: str) -> None:
    assert httpx.get(f"{url}/livez", timeout=30).status_code == 200


def slowly(first: bytes, rest: bytes) -> Iterator[bytes]:
    """Go on after pauses, whatever is answered, until the connection ends."""
    yield first
    while True:
        yield rest
        time.sleep(PAUSE)


@pytest.mark.parametrize(
    ("start", "rest"),
    [(b"Content-Length: 1000\r\n\r\n", b"hello"), (b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n")],
    ids=["length", "chunks"],
)
@pytest.mark.parametrize("is_dribbled", [False, True])
def test_an_unfinished_body_gets_408(url, start, rest, is_dribbled):
    parts = [HEAD + b"Connection: close\r\n" + start, *[rest] * (100 if is_dribbled else 1)]
    answer = exchange(url, parts, pause=PAUSE)
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert_served(url)


def test_a_silent_connection_is_closed(url):
    assert exchange(url, []) == b""


@pytest.mark.parametrize(
    "parts",
    [
        [GET],
        itertools.repeat(b"\r\n"),
        itertools.chain([GET], itertools.repeat(b"X: y\r\n")),
        itertools.chain([b"GET /"], itertools.repeat(b"x")),
    ],
    ids=["stopped", "empty lines", "headers", "path"],
)
def test_an_unfinished_head_gets_408(url, parts):
    """However often more of it comes."""
    answer = exchange(url, parts, pause=PAUSE)
    assert b"HTTP/1.1 408" in answer
    assert_served(url)


def test_empty_lines_behind_an_answer_do_not_keep_a_connection(url):
    answer = exchange(url, slowly(GET + b"\r\n", b"\r\n"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


def test_a_connection_may_be_older_than_the_limit(url):
    """Many requests on one connection, each of which comes with its body at once."""
    with httpx.Client(base_url=url, timeout=30) as client:
        end = time.monotonic() + 3 * LIMIT_SECONDS
        while time.monotonic() < end:
            assert client.post("/predict", content=BOOT + bytes(2**17)).status_code in {200, 422}
        assert client.get("/livez").status_code == 200


def test_an_endless_body_refused_early_ends_the_connection(url):
    start = HEAD + f"Content-Length: {2 * 10**7}\r\n\r\n".encode()
    assert exchange(url, slowly(start, b"x")).startswith(b"HTTP/1.1 413")
