"""Behavior of the service at ten times its capacity: `python -m benchmarks.overload`.

One worker; batches of twenty images under a hundred masks. First one connection alone, then for a minute ten times as
many requests a second as that one got answered, at even times, each on a connection that is free; then one alone again.
Writes docs/performance/overload.md.
"""

import asyncio
import io
import statistics
import time
from collections import Counter

import numpy as np
from rich.console import Console

from benchmarks.common import machine, table, write
from benchmarks.servers import SERVICE, Connection, run_server, send_request
from training.data import load_fashion_mnist

IMAGES = 20
TIMES = 10
SECONDS = 60.0
ALONE_SECONDS = 5.0

console = Console(highlight=False)
Answers = list[tuple[int, float]]  # status, seconds


def batch_request(pixels_BHW: np.ndarray) -> bytes:
    """Make an HTTP request of images."""
    buffer = io.BytesIO()
    np.save(buffer, pixels_BHW)
    body = buffer.getvalue()
    lines = (
        "POST /predict_batch?samples=100 HTTP/1.1",
        "Host: a",
        "Content-Type: application/x-npy",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


async def one_connection(port: int, request: bytes, seconds: float) -> Answers:
    """Send requests one after another on one connection; at least one."""
    connection = await asyncio.open_connection("127.0.0.1", port)
    answers: Answers = []
    end = time.perf_counter() + seconds
    while not answers or time.perf_counter() < end:
        start = time.perf_counter()
        answers.append((await send_request(connection, request), time.perf_counter() - start))
    connection[1].close()
    return answers


async def fixed_rate_load(port: int, request: bytes, *, rate: float, seconds: float) -> Answers:
    """Send requests at a fixed rate, independent of the answers."""
    answers: Answers = []
    free: list[Connection] = []

    async def ask() -> None:
        start = time.perf_counter()
        connection = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        answers.append((await send_request(connection, request), time.perf_counter() - start))
        free.append(connection)

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            group.create_task(ask())
    for _, writer in free:
        writer.close()
    return answers


def percentile(answers: Answers, n: int) -> float:
    """Compute a percentile of the seconds of successful answers."""
    return statistics.quantiles([seconds for status, seconds in answers if status == 200], n=100)[n - 1]


def main() -> None:
    """Measure, print and write."""
    request = batch_request(load_fashion_mnist().test.images_B[:IMAGES].numpy())
    with run_server(SERVICE) as server:
        asyncio.run(one_connection(server.port, request, ALONE_SECONDS))
        before = asyncio.run(one_connection(server.port, request, ALONE_SECONDS))
        capacity = len(before) / ALONE_SECONDS
        memory = server.memory()
        loaded = asyncio.run(fixed_rate_load(server.port, request, rate=TIMES * capacity, seconds=SECONDS))
        grown = server.memory() / memory
        ((_, recovery),) = asyncio.run(one_connection(server.port, request, 0))
        after = asyncio.run(one_connection(server.port, request, ALONE_SECONDS))
    statuses = Counter(status for status, _ in loaded)
    rows = [
        [
            name,
            f"{len(answers) / seconds:.0f}",
            f"{sum(status == 200 for status, _ in answers) / seconds:.0f}",
            *(f"{percentile(answers, n) * 1e3:.0f}" for n in (50, 99)),
        ]
        for name, answers, seconds in (
            ("one connection", before, ALONE_SECONDS),
            (f"{TIMES} times that", loaded, SECONDS),
            ("one connection, after", after, ALONE_SECONDS),
        )
    ]
    counts = ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items()))
    ratio = percentile(loaded, 99) / percentile(before, 99)
    text = (
        f"# Overload\n\nMade by `python -m benchmarks.overload`. {machine()}\n\n"
        f"Batches of {IMAGES} images under 100 masks to one worker, {TIMES} times as many a second as one connection "
        f"gets answered, for {SECONDS:g} s: {counts}. The 99th percentile of the answers is {ratio:.1f} times that of "
        f"one connection; memory is {grown:.3f} times what it was; the first answer afterwards took "
        f"{recovery * 1e3:.0f} ms.\n\n"
    )
    text += table(["load", "requests/s", "answers/s", "p50 ms of answers", "p99 ms of answers"], rows)
    write("overload.md", text)
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
