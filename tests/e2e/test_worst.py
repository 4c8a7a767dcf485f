"""The most expensive known request of each kind: it does not block others, and stays within the documented bounds."""

from collections.abc import Iterator

import psutil
import pytest
from server import Server, serve

from benchmarks.worst import REQUESTS, WorstCase, measure, worker_of

CPU_SECONDS = 1.5  # of a core that other programs share
DELAY_SECONDS = 0.1
MEMORY_BYTES = 400e6
TRIES = 8  # on a machine that others use too, one of them is undisturbed


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Iterator[tuple[int, psutil.Process]]:
    """A server with one worker: its port, and the worker."""
    with serve(tmp_path_factory.mktemp("single") / "home") as running:
        assert isinstance(running, Server)
        yield int(running.url.rpartition(":")[2]), worker_of(running.pid)


@pytest.mark.parametrize("worst", REQUESTS, ids=lambda worst: worst.name)
def test_the_most_expensive_request_does_not_block_others(single: tuple[int, psutil.Process], worst: WorstCase) -> None:
    port, worker = single
    request = worst.make()
    for _ in range(TRIES):
        cost = measure(port, worker, request)
        assert cost.status == worst.status
        assert cost.memory < MEMORY_BYTES
        if cost.delay < DELAY_SECONDS and cost.cpu < CPU_SECONDS:
            return
    raise AssertionError(cost)
