"""Latency of requests to the running service by kind, taking turns: `python -m benchmarks.latency`.

One worker of a real `bentoml serve`, one connection that stays open, PNG test images. Writes
docs/performance/latency.md.
"""

import http.client
import io
import socket
import statistics
import time

from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.common import machine, table, write
from benchmarks.servers import SERVICE, run_server
from training.data import load_fashion_mnist

KINDS = {
    "eval": "",
    "samples=10": "?samples=10",
    "samples=100": "?samples=100",
    "samples=1000": "?samples=1000",
    "samples=auto": "?samples=auto",
    "method=moments": "?method=moments",
}
ROUNDS = 600

console = Console(highlight=False)


def png(pixels: object) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def measure(connection: http.client.HTTPConnection, images: list[bytes]) -> dict[str, list[float]]:
    """Seconds of each request by kind."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index in track(range(ROUNDS), "requests", transient=True):
        for kind, query in KINDS.items():
            body = images[index % len(images)]
            start = time.perf_counter()
            connection.request("POST", f"/predict{query}", body, {"Content-Type": "image/png"})
            response = connection.getresponse()
            answer = response.read()
            seconds[kind].append(time.perf_counter() - start)
            if response.status != http.client.OK:
                raise RuntimeError(f"{kind}: {answer.decode()}")
    return seconds


def main() -> None:
    """Measure, print and write."""
    images = [png(pixels) for pixels in load_fashion_mnist().test.images_B[:200].numpy()]
    with run_server(SERVICE) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = measure(connection, images)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    rows = [
        [
            kind,
            f"{medians[kind] * 1e3:.2f}",
            f"{medians[kind] / medians['eval']:.2f}",
            f"{statistics.quantiles(times, n=100)[98] * 1e3:.2f}",
        ]
        for kind, times in seconds.items()
    ]
    text = (
        f"# Latency of the service\n\nMade by `make bench`. {machine()}\n\n"
        f"{ROUNDS} requests of each kind, taking turns on one connection to one worker; PNG test images, as a client "
        "on the same machine sees it.\n\n"
    )
    text += table(["request", "median ms", "ratio to eval", "p99 ms"], rows)
    write("latency.md", text)
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
