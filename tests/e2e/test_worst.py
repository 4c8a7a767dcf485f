"""The most expensive known request of each kind: it does not block others, and stays within the documented bounds."""

import time
from collections.abc import Iterator

import psutil
import pytest
from server import Server, serve

from benchmarks.worst import REQUESTS, WorstCase, measure, worker_of

CPU_SECONDS = 1.5  # of a core that does the reference in REFERENCE_SECONDS
REFERENCE_SECONDS = 0.1
DELAY_SECONDS = 0.1
MEMORY_BYTES = 400e6
_REFERENCE_STEPS = 1_700_000
TRIES = 8  # on a machine that others use too, one of them is undisturbed


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Iterator[tuple[int, psutil.Process]]:
    """A server with one worker: its port, and the worker."""
    with serve(tmp_path_factory.mktemp("single") / "home") as running:
        assert isinstance(running, Server)
        yield int(running.url.rpartition(":")[2]), worker_of(running.pid)


def slowness() -> float:
    """How much longer than REFERENCE_SECONDS a fixed computation takes now, at least 1: programs share cores."""
    begun = time.process_time()
    sum(number * number for number in range(_REFERENCE_STEPS))
    return max((time.process_time() - begun) / REFERENCE_SECONDS, 1)


@pytest.mark.parametrize("worst", REQUESTS, ids=lambda worst: worst.name)
def test_the_most_expensive_request_does_not_block_others(single: tuple[int, psutil.Process], worst: WorstCase) -> None:
    port, worker = single
    request = worst.make()
    for _ in range(TRIES):
        slower = slowness()
        cost = measure(port, worker, request)
        assert cost.status == worst.status
        assert cost.memory < MEMORY_BYTES
        if cost.delay < DELAY_SECONDS and cost.cpu < CPU_SECONDS * slower:
            return
    raise AssertionError(cost)
