"""Requests per second of the service, plain Starlette and a plain BentoML service: `python -m benchmarks.throughput`.

The service runs with and without its metrics. One worker each, eight connections, PNG test images, a hundred masks. All
servers run; they take turns of a second under load from one process. Writes docs/performance/throughput.md.
"""

import asyncio
import io
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle

from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.common import machine, table, write
from benchmarks.servers import BENTOML, SERVICE, run_server, send_request
from training.data import load_fashion_mnist

CONNECTIONS = 8
TURNS = 15
SECONDS = 1.0
SERVERS = {
    "this service": (SERVICE, "/readyz"),
    "this service without metrics": ((*BENTOML, "benchmarks.without_metrics:UncertaintyService"), "/readyz"),
    "bare uvicorn and Starlette": (
        (
            "-m",
            "uvicorn",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--no-access-log",
            "benchmarks.apps:starlette_app",
        ),
        "/",
    ),
    "BentoML's idiom": ((*BENTOML, "benchmarks.apps:PlainBentoService"), "/readyz"),
}

console = Console(highlight=False)


def requests(pixels_B: Sequence[object], *, is_form: bool, path: str) -> list[bytes]:
    """HTTP requests, one for each image: a PNG file as body, or in a form."""
    found = []
    for pixels in pixels_B:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        body, kind = buffer.getvalue(), "image/png"
        if is_form:
            kind = "multipart/form-data; boundary=b"
            disposition = b'Content-Disposition: form-data; name="image"; filename="a.png"'
            body = b"--b\r\n%b\r\nContent-Type: image/png\r\n\r\n%b\r\n--b--\r\n" % (disposition, body)
        header = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        found.append(header.encode() + body)
    return found


async def load(port: int, sent: Iterator[bytes], *, seconds: float, connections: int) -> list[float]:
    """Send requests on some connections, each the next one when it has its answer; seconds that each took."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        connection = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            status = await send_request(connection, next(sent))
            took.append(time.perf_counter() - start)
            if status != 200:
                raise RuntimeError(f"answered with {status}")
        connection[1].close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return took


def main() -> None:
    """Measure, print and write."""
    pixels_B = list(load_fashion_mnist().test.images_B[:200].numpy())
    rates: dict[str, list[float]] = {name: [] for name in SERVERS}
    latencies: dict[str, list[float]] = {name: [] for name in SERVERS}
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(run_server(command, ready=ready)).port
            for name, (command, ready) in SERVERS.items()
        }
        sent = {
            name: cycle(
                requests(
                    pixels_B,
                    is_form=name == "BentoML's idiom",
                    path="/predict?samples=100" if name.startswith("this service") else "/predict",
                )
            )
            for name in SERVERS
        }
        for turn in track(range(TURNS + 1), "turns", transient=True):
            for name, port in ports.items():
                took = asyncio.run(load(port, sent[name], seconds=SECONDS, connections=CONNECTIONS))
                if turn:  # the first only warms up
                    rates[name].append(len(took) / SECONDS)
                    latencies[name] += took
    ours = statistics.median(rates["this service"])
    rows = []
    for name, found in rates.items():
        centiles = statistics.quantiles(latencies[name], n=100)
        rate = statistics.median(found)
        rows.append(
            [
                name,
                f"{rate:.0f}",
                f"{ours / rate:.2f}",
                f"{centiles[49] * 1e3:.2f}",
                f"{centiles[98] * 1e3:.2f}",
                f"{centiles[98] / centiles[49]:.1f}",
            ]
        )
    text = (
        f"# Throughput of the service\n\nMade by `make bench`. {machine()}\n\n"
        f"One worker, {CONNECTIONS} connections, PNG test images, 100 masks; {TURNS} turns of {SECONDS:g} second each, "
        "taking turns, with the load from one other process. The last two do the same decoding, inference and "
        "decision; they have no limits, checks, preprocessing, log or metrics of ours.\n\n"
    )
    text += table(["server", "requests/s", "this service / it", "p50 ms", "p99 ms", "p99 / p50"], rows)
    write("throughput.md", text)
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
