"""The requests that cost most within the default limits: `python -m benchmarks.worst` writes docs/performance/worst.md.

One worker. Each is the worst known request of its kind: as large as its limit allows, and small to send where possible.
`tests/e2e/test_worst.py` sends them too.
"""

import gzip
import http.client
import io
import json
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image
from rich.console import Console

from benchmarks.common import machine, table, write
from benchmarks.servers import SERVICE, run_server

BODY_BYTES = 10 * 2**20
PIXELS = 25_000_000
POLL_SECONDS = 0.02
FORM, JSON, NPY, FILE = "multipart/form-data; boundary=b", "application/json", "application/x-npy", "image/png"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG colour type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PAETH = b"\4"

console = Console(highlight=False)


class Request(NamedTuple):
    """What is sent by POST."""

    body: bytes
    path: str = "/predict"
    media_type: str = FILE
    headers: tuple[tuple[str, str], ...] = ()


class WorstCase(NamedTuple):
    """The worst known request of a kind, the limit that bounds it, and the status that it gets."""

    name: str
    limit: str
    status: int
    make: Callable[[], Request]


class Cost(NamedTuple):
    """What a request cost: status of the answer, seconds of CPU, delay of /livez in seconds, bytes of memory."""

    status: int
    cpu: float
    delay: float
    memory: int


def chunk(name: bytes, content: bytes = b"") -> bytes:
    """Write a PNG chunk."""
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(
    width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, before: bytes = b"", interlace: int = 0
) -> bytes:
    """Write a PNG file of raw rows, each behind its filter."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + parts


def side(bytes_a_pixel: float = 3) -> int:
    """Side length of the largest allowed square of such pixels."""
    return int((PIXELS / max(bytes_a_pixel / 3, 1)) ** 0.5)


def square(colour: int, depth: int = 8, before: bytes = b"", length: int | None = None) -> bytes:
    """The largest square of a kind, with the filter that takes longest, in few bytes."""
    length = length or side(CHANNELS[colour] * depth / 8)
    row = np.random.default_rng(0).integers(0, 256, -(-length * CHANNELS[colour] * depth // 8), dtype=np.uint8)
    row[3000:] = 5
    return png(length, length, (PAETH + row.tobytes()) * length, depth=depth, colour=colour, before=before)


def interlaced(colour: int, depth: int) -> bytes:
    """The largest interlaced square of a kind."""
    bits, length = CHANNELS[colour] * depth, side(CHANNELS[colour] * depth / 8)
    rows = []
    for left, top, right, down in ADAM7:
        width, height = -(-(length - left) // right), -(-(length - top) // down)
        rows.append((PAETH + b"\7" * -(-width * bits // 8)) * height)
    return png(length, length, b"".join(rows), depth=depth, colour=colour, interlace=1)


def small_png(before: bytes = b"") -> bytes:
    """28 x 28 pixels behind other chunks."""
    return png(28, 28, bytes(29 * 28), before=before)


def encoded(image: Image.Image, media_type: str, **options: object) -> bytes:
    """Encode an image with Pillow."""
    file = io.BytesIO()
    image.save(file, media_type, **options)
    return file.getvalue()


def smooth(length: int) -> Image.Image:
    """A picture that compresses about as a photograph does."""
    pixels = np.random.default_rng(0).integers(0, 256, (length // 16, length // 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((length, length), Image.Resampling.BICUBIC)


def jpeg_of_scans(length: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("RGB", (length, length), (200, 30, 90)), "JPEG", progressive=True)
    starts = [statuses.start() for statuses in re.finditer(b"\xff\xda", data)]
    return data[:-2] + data[starts[-1] : -2] * (scans - len(starts)) + data[-2:]


def small_jpeg(junk: bytes) -> bytes:
    """28 x 28 pixels after data that the decoder must skip."""
    data = encoded(Image.new("L", (28, 28)), "JPEG")
    return data[:2] + junk + data[2:]


def animation() -> bytes:
    """As many large frames as fit."""
    frames = [Image.new("RGB", (3500, 3500), (level, 0, 0)) for level in range(1, 20)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def form(files: Sequence[bytes], path: str = "/predict_batch") -> Request:
    """A form of files."""
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    return Request(b"".join(head + file + b"\r\n" for file in files) + b"--b--\r\n", path, FORM)


def batch(count: int, query: str, path: str = "/predict_batch") -> Request:
    """Arrays, and how they are predicted."""
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8))
    return Request(file.getvalue(), f"{path}?{query}", NPY)


def json_body(text: str | bytes, path: str = "/predict_batch") -> Request:
    """A JSON body."""
    return Request(text.encode() if isinstance(text, str) else text, path, JSON)


def infer(count: int, samples: int, output: str) -> Request:
    """A tensor by the Open Inference Protocol."""
    tensor = {"name": "image", "shape": [count, 28, 28], "datatype": "UINT8", "data": [0] * (784 * count)}
    document = {"inputs": [tensor], "parameters": {"samples": samples}, "outputs": [{"name": output}]}
    return json_body(json.dumps(document), "/v2/models/mcd/infer")


def elements() -> Request:
    """Millions of empty files in a binary tensor."""
    size = BODY_BYTES - 1000
    tensor = {"name": "image", "shape": [size // 4], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = ("Inference-Header-Content-Length", str(len(head)))
    return Request(head + bytes(size), "/v2/models/mcd/infer", "application/octet-stream", (length,))


def compressed(size: int) -> Request:
    """Zeros, compressed."""
    return Request(gzip.compress(bytes(size)), headers=(("Content-Encoding", "gzip"),))


_PIXEL_LIMIT, _JSON_LIMIT = "`MCD_MAX_PIXELS`", "`MCD_MAX_IMAGES`: values, lists and names of so many images"
_BODY_LIMIT = BODY_BYTES - 1000
REQUESTS = [
    WorstCase("PNG, RGB", _PIXEL_LIMIT, 200, lambda: Request(square(2))),
    WorstCase("PNG, RGB with alpha", _PIXEL_LIMIT, 200, lambda: Request(square(6))),
    WorstCase("PNG, RGB with alpha, 16 bits", _PIXEL_LIMIT, 200, lambda: Request(square(6, 16))),
    WorstCase(
        "PNG, grey, 16 bits, a transparent level",
        _PIXEL_LIMIT,
        200,
        lambda: Request(square(0, 16, chunk(b"tRNS", bytes(2)))),
    ),
    WorstCase(
        "PNG, RGB, 16 bits, a transparent colour",
        _PIXEL_LIMIT,
        200,
        lambda: Request(square(2, 16, chunk(b"tRNS", bytes(6)), length=2499)),
    ),
    WorstCase(
        "PNG, palette with alpha",
        _PIXEL_LIMIT,
        200,
        lambda: Request(square(3, 8, chunk(b"PLTE", bytes(range(256)) * 3) + chunk(b"tRNS", bytes(range(256))))),
    ),
    WorstCase("PNG, RGB, interlaced", _PIXEL_LIMIT, 200, lambda: Request(interlaced(2, 8))),
    WorstCase(
        "PNG, 158 x 158,000",
        "`MCD_MAX_ASPECT_RATIO`",
        200,
        lambda: Request(png(158, 158_000, (PAETH + bytes(3 * 157) + b"\7\7\7") * 158_000, colour=2)),
    ),
    WorstCase(
        "PNG, 30,000 x 1", "`MCD_MAX_ASPECT_RATIO`", 422, lambda: Request(png(30_000, 1, b"\0\xc8" + bytes(29_999)))
    ),
    WorstCase("PNG, 60,000 chunks", "65,536 chunks", 200, lambda: Request(small_png(chunk(b"teXt") * 60_000))),
    WorstCase(
        "PNG, compressed text",
        "8 MiB of it",
        200,
        lambda: Request(small_png(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**20 - 1))) * 7)),
    ),
    WorstCase(
        "PNG, a bomb of compressed text",
        "8 MiB of it",
        422,
        lambda: Request(small_png(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**28))))),
    ),
    WorstCase(
        "JPEG, progressive",
        _PIXEL_LIMIT,
        200,
        lambda: Request(encoded(smooth(4992), "JPEG", progressive=True, quality=70)),
    ),
    WorstCase(
        "JPEG, CMYK, progressive",
        _PIXEL_LIMIT,
        200,
        lambda: Request(encoded(smooth(4320).convert("CMYK"), "JPEG", progressive=True, quality=50)),
    ),
    WorstCase("JPEG, 20 scans", "20 scans count once", 200, lambda: Request(jpeg_of_scans(4992, 20))),
    WorstCase("JPEG, 100 scans", "100 scans, which count five times", 200, lambda: Request(jpeg_of_scans(2200, 100))),
    WorstCase("JPEG, 65,000 segments", "65,536 segments", 200, lambda: Request(small_jpeg(b"\xff\xfe\0\2" * 65_000))),
    WorstCase(
        "JPEG, 10 MB of fill bytes",
        "`MCD_MAX_BODY_BYTES`",
        200,
        lambda: Request(small_jpeg(b"\xff" * (_BODY_LIMIT - 1000))),
    ),
    WorstCase(
        "WebP, lossy",
        "`MCD_MAX_PIXELS`, which count twice",
        200,
        lambda: Request(encoded(smooth(3535), "WEBP", quality=70, method=0)),
    ),
    WorstCase(
        "WebP, lossless",
        "`MCD_MAX_PIXELS`, which count twice",
        200,
        lambda: Request(encoded(smooth(3535).quantize(64).convert("RGB"), "WEBP", lossless=True, quality=20, method=1)),
    ),
    WorstCase("WebP, 19 frames", "`MCD_MAX_PIXELS`; one frame is decoded", 200, lambda: Request(animation())),
    WorstCase(
        "ten large files of a batch",
        "`MCD_MAX_PIXELS` of all together",
        200,
        lambda: form([square(2, length=1580)] * 10),
    ),
    WorstCase(
        "400 larger files of a batch",
        "`MCD_MAX_PIXELS` of all together",
        200,
        lambda: form([square(0, 1, length=4999)] * 400),
    ),
    WorstCase("1000 images, 100 masks", "`MCD_MAX_FORWARD_PASSES`", 200, lambda: batch(1000, "samples=100")),
    WorstCase(
        "500 images, `samples=auto`",
        "`MCD_MAX_FORWARD_PASSES`",
        200,
        lambda: batch(500, "samples=auto&max_samples=200&tolerance=0.000001"),
    ),
    WorstCase(
        "500 images, `return_samples`",
        "`MCD_MAX_FORWARD_PASSES`",
        200,
        lambda: batch(500, "samples=100&return_samples=true"),
    ),
    WorstCase("1000 images, `method=moments`", "`MCD_MAX_IMAGES`", 200, lambda: batch(1000, "method=moments")),
    WorstCase("ranking of 1000 images", "`MCD_MAX_FORWARD_PASSES`", 200, lambda: batch(1000, "samples=100", "/rank")),
    WorstCase(
        "/v2, 500 images, `sample_probabilities`",
        "`MCD_MAX_FORWARD_PASSES`",
        200,
        lambda: infer(500, 100, "sample_probabilities"),
    ),
    WorstCase("/v2, 2.6 million elements", "`MCD_MAX_IMAGES`", 413, elements),
    WorstCase(
        "JSON, 1000 arrays, 100 masks",
        _JSON_LIMIT,
        200,
        lambda: json_body(json.dumps([[[7] * 28] * 28] * 1000), "/predict_batch?samples=100"),
    ),
    WorstCase(
        "JSON, 5 million numbers", _JSON_LIMIT, 413, lambda: json_body(b"[" + b"0," * (_BODY_LIMIT // 2) + b"0]")
    ),
    WorstCase("JSON, 780,000 strings", _JSON_LIMIT, 413, lambda: json_body(b"[" + b'"a",' * 780_000 + b'"a"]')),
    WorstCase(
        "JSON, 30,000 names",
        _JSON_LIMIT,
        422,
        lambda: json_body("{" + ",".join(f'"{one}":0' for one in range(30_000)) + "}"),
    ),
    WorstCase(
        "JSON, 2.6 million lists", _JSON_LIMIT, 400, lambda: json_body(b"[" + b"[]," * (_BODY_LIMIT // 3) + b"0]")
    ),
    WorstCase(
        "JSON, 5000 lists in one another",
        "`MCD_MAX_JSON_DEPTH`",
        400,
        lambda: json_body(b'{"image":' + b"[" * 5000 + b"]" * 5000 + b"}", "/predict"),
    ),
    WorstCase(
        "JSON, 10 MB of escapes",
        "`MCD_MAX_BODY_BYTES`",
        415,
        lambda: json_body(b'{"image":"' + b"\\u0041" * (_BODY_LIMIT // 6) + b'"}', "/predict"),
    ),
    WorstCase("form, 60,000 parts", "`MCD_MAX_IMAGES`", 400, lambda: form([b"x"] * 60_000)),
    WorstCase(
        "form, 10 MB of starts of boundaries",
        "`MCD_MAX_BODY_BYTES`",
        415,
        lambda: form([b"\r\n--" * (_BODY_LIMIT // 4)], "/predict"),
    ),
    WorstCase(
        "form, a header of 10 MB",
        "python-multipart: 4 KiB",
        400,
        lambda: Request(b"--b\r\nA: " + b"a" * _BODY_LIMIT, media_type=FORM),
    ),
    WorstCase("gzip, 10 MB of zeros", "`MCD_MAX_BODY_BYTES`", 415, lambda: compressed(_BODY_LIMIT)),
    WorstCase("gzip, a bomb of 500 MB", "`MCD_MAX_BODY_BYTES`, decompressed", 413, lambda: compressed(500 * 2**20)),
]


def worker_of(pid: int) -> psutil.Process:
    """The one worker of a supervisor."""
    below = psutil.Process(pid).children(recursive=True)
    (worker,) = [process for process in below if "_bentoml_impl.worker" in " ".join(process.cmdline())]
    return worker


def measure(port: int, worker: psutil.Process, request: Request) -> Cost:
    """Send a request to a server with one worker, and poll /livez until it is answered."""
    statuses: list[int] = []
    sender = threading.Thread(target=lambda: statuses.append(_post(port, request)))
    cpu, memory = sum(worker.cpu_times()[:2]), worker.memory_info().rss
    peak, delays = memory, [0.0]
    sender.start()
    while sender.is_alive():
        start = time.perf_counter()
        _send(port, "GET", "/livez")
        delays.append(time.perf_counter() - start)
        peak = max(peak, worker.memory_info().rss)
        time.sleep(POLL_SECONDS)
    return Cost(statuses[0], sum(worker.cpu_times()[:2]) - cpu, max(delays), peak - memory)


def _post(port: int, request: Request) -> int:
    headers = {"Content-Type": request.media_type, **dict(request.headers)}
    return _send(port, "POST", request.path, request.body, headers)


def _send(port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def main() -> None:
    """Measure each request, and write the table."""
    rows = []
    with run_server(SERVICE) as server:
        worker = worker_of(server.pid)
        _send(server.port, "POST", "/predict", small_png(), {"Content-Type": FILE})
        for worst in REQUESTS:
            request = worst.make()
            costs = [measure(server.port, worker, request) for _ in range(3)]
            status, cpu, delay, memory = costs[0]._replace(
                cpu=min(cost.cpu for cost in costs),
                delay=min(cost.delay for cost in costs),
                memory=max(cost.memory for cost in costs),
            )
            figures = [f"{status}", f"{cpu:.2f}", f"{memory / 1e6:.0f}", f"{delay * 1e3:.0f}"]
            rows.append([worst.name, f"{len(request.body):,}", worst.limit, *figures])
            console.print(*rows[-1], markup=False)
    heads = ["request", "bytes", "bounded by", "status", "CPU s", "MB", "delay of /livez ms"]
    text = (
        f"# Worst requests\n\nMade by `python -m benchmarks.worst`. {machine()}\n\n"
        "The worst known request of each kind, within the default limits, to one worker: seconds of CPU, what the "
        "worker's memory grew by, and the longest that another connection waited for `/livez` meanwhile (the least of "
        "three times; of the memory the most). Answering `/livez` is part of the CPU time.\n\n"
    )
    write("worst.md", text + table(heads, rows))


if __name__ == "__main__":
    main()
