"""Requests that no honest client sends: each is a client error, and leaves nothing behind."""

import base64
import gzip
import itertools
import json
import struct
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest
from files import encoded
from PIL import Image
from server import ROOT, Server
from two_models import Served

from model.input_spec import InputSpec

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
LEAST = 280

# Content type, body, query, further headers.
Request = tuple[str, bytes, dict[str, str], dict[str, str]]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *others: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def truncated() -> Iterator[bytes]:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded(picture, kind)
        yield from (whole[: len(whole) * part // 12] for part in range(11))


def bombs() -> Iterator[bytes]:
    for width, height in ((10_000, 10_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 5), (5, 0), (100_000, 1000)):
        yield png(width, height, data=bytes(1000))
    yield encoded(Image.new("1", (10_000, 10_000)), "PNG")
    yield encoded(Image.new("L", (12_000, 9000)), "JPEG")
    text = zlib.compress(bytes(200 * 2**20))
    yield png(28, 28, chunk(b"zTXt", b"x\0\0" + text), data=bytes(29 * 28))
    yield png(28, 28, chunk(b"iTXt", b"x\0\1\0\0\0" + text), data=bytes(29 * 28))
    yield png(28, 28, chunk(b"iCCP", b"x\0\0" + text[:1000]), data=bytes(5))


def files_of_other_kinds() -> Iterator[bytes]:
    heads = [
        b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"8BPS", b"%PDF-1.7", b"PK\3\4", b"\x1f\x8b\x08", b"\x7fELF", b"MZ",
        b"SIMPLE  =                    T", b"\0\0\1\0", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypavif", b"\xff\x4f\xff\x51",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", b"<!DOCTYPE html><script>1</script>",
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
        b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93.", b"cos\nsystem\n(S'true'\ntR.",
        b"P5 9 9 255\n",
        b"#!/bin/sh\n", b"http://127.0.0.1/", b"file:///etc/passwd", b"\0" * 100, b"\xff" * 100, b"\x89PNG",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n" + b"\0" * 60, b"GIF89a" + BOOT, b" " + BOOT,
    ]  # fmt: skip
    yield from (head + bytes(range(64)) for head in heads)


def arrays(spec: InputSpec) -> Iterator[str]:
    shape, count = spec.pixel_shape, spec.values
    zeros = np.zeros(shape, int).tolist()
    for bad in (
        "NaN",
        "Infinity",
        "-Infinity",
        "-1",
        "256",
        "1e400",
        "1e308",
        "0.5",
        '"0"',
        "null",
        "true",
        "[0]",
        "{}",
    ):
        end = "]" * len(shape)
        yield f'{{"image": {json.dumps(zeros).removesuffix(end)}, {bad}{end}}}'  # one value too many, too
        yield '{"image": [' + ", ".join(["0"] * (count - 1) + [bad]) + "]}"
    height, width = shape[:2]
    sides = [(height - 1, width), (height, width - 1), (height, width + 1), (height, width, 2), (height, 0), (1, 1)]
    for other in (*sides, (count - 1,), (count + 1,), (0,), (*shape, 1), (1, *shape)):
        yield json.dumps({"image": np.zeros(other, int).tolist()})
    yield json.dumps({"image": [*zeros[1:], zeros[0][1:]]})
    yield from (
        json.dumps({"image": value}) for value in (0, 1.5, None, True, {}, "", "x", "http://127.0.0.1/a.png", "é")
    )


def broken_json() -> Iterator[bytes]:
    yield from (
        b"", b"{", b"}", b"nul", b"'a'", b'{"image": [1}', b'{"image": 1,}', b'{"image": "\xff"}',
        b'{"image": "\\ud800"}',
        b"[" * 100_000, b'{"a":' * 100_000, b"[" * 500 + b"]" * 500, b"1" * 100_000, b'"' + b"a" * 100_000,
        json.dumps({"image": [0]}).encode("utf-16"), b"\xef\xbb\xbf{", b"\0{}", b"{}", b"[]", b"5", b"null", b'"text"',
        b'{"image": "a", "image": "b"}', b'{"image": [0], "constructor": {}}', b'{"__proto__": 1, "image": [0]}',
    )  # fmt: skip


def forms() -> Iterator[tuple[str, bytes]]:
    def part(name: str, more: str = '; filename="x"', data: bytes = BOOT) -> bytes:
        return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"

    good = part("image") + b"--b--\r\n"
    kind = "multipart/form-data; boundary=b"
    for other in ("", "; boundary=", "; boundary=c", f"; boundary={'b' * 500}", '; boundary="b', "; boundary=\x01"):
        yield f"multipart/form-data{other}", good
    yield from ((kind, good[:end]) for end in (0, 1, 5, 50, 100, len(good) - 7, len(good) - 5))
    yield kind, part("image") * 2 + b"--b--\r\n"
    yield kind, part("f") * 10_000 + b"--b--\r\n"
    yield kind, part("f", "", b"x") * 10_000 + b"--b--\r\n"
    yield kind, part("image", "", b"text") + b"--b--\r\n"
    yield kind, part("image", '; filename="x"\r\nA: ' + "b" * 100_000) + b"--b--\r\n"
    yield kind, part("image", '; filename="x"' + "\r\nA: b" * 1000) + b"--b--\r\n"
    yield kind, part("image", '; filename="x"\r\nContent-Transfer-Encoding: base64', b"!") + b"--b--\r\n"
    yield kind, part("seed", "", b"\xff") + good
    yield kind, part("seed", "", b"1") + part("seed", "", b"2") + good
    yield kind, good.replace(b'name="image"; ', b"")
    yield kind, good.replace(b"form-data", b"attachment").replace(b"image", b"x")
    yield kind, b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n--c--\r\n--b--\r\n"


def parameters() -> Iterator[tuple[str, str]]:
    values = ["", " ", "-1", "1e400", "NaN", "9" * 30, "0x10", "1;2", "٣", "\0", "'; DROP TABLE", "a" * 1000]
    names = [
        "samples",
        "seed",
        "tolerance",
        "max_samples",
        "coverage",
        "max_risk",
        "method",
        "invert",
        "dtype",
        "calibrated",
    ]
    yield from itertools.product(names, values)
    yield from (("x", "1"), ("", "1"), ("samples[]", "1"), ("Samples", "10"), ("samples", "1001"), ("image", "x"))


def compressed() -> Iterator[tuple[str, bytes]]:
    zeros = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([*(zeros.compress(bytes(2**20)) for _ in range(500)), zeros.flush()])  # half a gigabyte
    yield from (("gzip", bomb), ("gzip", gzip.compress(bomb)), ("gzip", b"x"), ("gzip", gzip.compress(BOOT)[:-4]))
    yield from (("deflate", b"\xff" * 50), ("gzip", gzip.compress(BOOT) + b"x"), ("gzip", b""), ("br", BOOT))
    yield from (("zstd", BOOT), ("gzip, gzip", BOOT), ("compress", BOOT), ("x" * 1000, BOOT))


def requests(spec: InputSpec) -> Iterator[Request]:
    pictures = [*truncated(), *bombs(), *files_of_other_kinds()]
    yield from (("image/png", picture, {}, {}) for picture in pictures)
    encoded_pictures = (base64.b64encode(picture).decode() for picture in pictures[::4])
    yield from (("application/json", json.dumps({"image": one}).encode(), {}, {}) for one in encoded_pictures)
    yield from (("application/json", text.encode(), {}, {}) for text in arrays(spec))
    yield from (("application/json", body, {}, {}) for body in broken_json())
    yield from ((kind, body, {}, {}) for kind, body in forms())
    yield from (("image/png", BOOT, {name: value}, {}) for name, value in parameters())
    yield from (("image/png", body, {}, {"Content-Encoding": encoding}) for encoding, body in compressed())
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {(1, *spec.pixel_shape)}, }}".encode()
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    yield from (("application/x-npy", body, {}, {}) for body in (npy, npy.replace(b"|O", b"|u1"), b"\x93NUMPY", BOOT))
    for kind in (
        "text/html",
        "application/x-pickle",
        "application/vnd.bentoml+pickle",
        "*/*",
        "\x7f",
        "image",
        "a/" * 500,
    ):
        yield kind, BOOT, {}, {}
    yield "image/png", BOOT, {}, {f"X-{number}": "x" for number in range(150)}
    yield "image/png", BOOT, {}, {"X": "x" * 20_000}
    yield "image/png", BOOT, {"seed": "0" * 9000}, {}


MOST_ROUNDS = 8  # until the allocators of two workers have what they need
GROWTH = 0.02  # of a round that counts as none


def send(client: httpx.Client, request: Request) -> httpx.Response:
    kind, body, params, headers = request
    return client.post("/predict", content=body, params=params, headers={"Content-Type": kind, **headers})


def memory(server: Server) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in server.worker_pids)


def test_each_is_a_client_error_and_memory_stays(
    served: Served, served_server: Server, served_client: httpx.Client
) -> None:
    corpus = list(requests(served.artifact.input))
    assert len(corpus) >= LEAST
    before = served_client.post("/predict", content=BOOT, params={"samples": 30}).content
    used = []
    for _ in range(MOST_ROUNDS):
        for number, request in enumerate(corpus):
            response = send(served_client, request)  # within the client's time limit
            case = (number, request[0][:80], request[1][:80], request[2], response.status_code, response.text[:200])
            assert 400 <= response.status_code < 500, case
            if response.headers["content-type"] == "application/problem+json":
                assert response.json()["status"] == response.status_code, case
                assert len(response.content) < 2000, case
        used.append(memory(served_server))
        if len(used) > 2 and used[-1] < (1 + GROWTH) * used[-2]:
            break
    else:
        pytest.fail(f"memory grew in each round: {used}")
    assert served_client.post("/predict", content=BOOT, params={"samples": 30}).content == before
    assert "Traceback" not in served_server.log.read_text()
