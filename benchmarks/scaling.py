"""Throughput of one and two workers, by kind of request: `python -m benchmarks.scaling`.

Eight connections, test images. Servers of one and two workers take turns of two seconds; the load comes from one
process on the same machine, so that two workers on two cores share them with it. Writes docs/performance/scaling.md.
"""

import asyncio
import io
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.common import machine, table, write
from benchmarks.servers import SERVICE, run_server
from benchmarks.throughput import load, requests
from training.data import load_fashion_mnist

CONNECTIONS = 8
TURNS = 5
SECONDS = 2.0
BATCH = 100
BATCHES = 4  # connections that send batches: a worker takes five at once
WORKERS = (1, 2)

console = Console(highlight=False)


def batch_requests(pixels_BHW: np.ndarray, path: str) -> list[bytes]:
    """HTTP requests with an .npy body of some images each."""
    result = []
    for start in range(0, len(pixels_BHW), BATCH):
        buffer = io.BytesIO()
        np.save(buffer, pixels_BHW[start : start + BATCH])
        body = buffer.getvalue()
        header = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-npy\r\nContent-Length: {len(body)}"
        result.append(header.encode() + b"\r\n\r\n" + body)
    return result


def kinds(pixels_BHW: np.ndarray) -> dict[str, tuple[Sequence[bytes], int, int]]:
    """Requests, images of each and connections, by kind."""
    images = list(pixels_BHW[:200])
    single = {
        "eval": "/predict",
        "100 masks": "/predict?samples=100",
        "1000 masks": "/predict?samples=1000",
        "moments": "/predict?method=moments",
    }
    result: dict[str, tuple[Sequence[bytes], int, int]] = {
        name: (requests(images, is_form=False, path=path), 1, CONNECTIONS) for name, path in single.items()
    }
    batch = batch_requests(pixels_BHW[:1000], "/predict_batch?samples=100")
    return result | {f"batch of {BATCH}, 100 masks": (batch, BATCH, BATCHES)}


def main() -> None:
    """Measure, print and write."""
    requests_by_kind = kinds(load_fashion_mnist().test.images_B.numpy())
    rates: dict[tuple[str, int], list[float]] = {
        (name, workers): [] for name in requests_by_kind for workers in WORKERS
    }
    latencies: dict[tuple[str, int], list[float]] = {place: [] for place in rates}
    with ExitStack() as stack:
        servers = {
            workers: stack.enter_context(run_server(SERVICE, MCD_WORKERS=str(workers), MCD_LOG_LEVEL="warning"))
            for workers in WORKERS
        }
        for turn in track(range(TURNS + 1), "turns", transient=True):
            for name, (sent, images, connections) in requests_by_kind.items():
                for workers, server in servers.items():
                    seconds = asyncio.run(load(server.port, cycle(sent), seconds=SECONDS, connections=connections))
                    if turn:  # the first only warms up
                        rates[name, workers].append(len(seconds) * images / SECONDS)
                        latencies[name, workers] += seconds
        memory = {workers: server.memory() / workers / 1e6 for workers, server in servers.items()}
    rows = []
    for name in requests_by_kind:
        one, two = (statistics.median(rates[name, workers]) for workers in WORKERS)
        p99 = (statistics.quantiles(latencies[name, workers], n=100)[98] * 1e3 for workers in WORKERS)
        rows.append([name, f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}", *(f"{value:.0f}" for value in p99)])
    text = (
        f"# Images a second by workers\n\nMade by `make bench`. {machine()}\n\n"
        f"{CONNECTIONS} connections, {BATCHES} for batches, each asking again once it is answered; medians of {TURNS} "
        f"turns of {SECONDS:g} seconds. The load runs on the same two cores as the workers: two workers have less than "
        f"two cores. A worker holds {memory[1]:.0f} MB of memory after it.\n\n"
    )
    header = ["requests", "images/s, 1 worker", "2 workers", "2 / 1", "p99 ms, 1 worker", "p99 ms, 2 workers"]
    text += table(header, rows)
    write("scaling.md", text)
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
