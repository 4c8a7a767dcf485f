"""Metrics while all workers are killed and replaced."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
from exposition import BOOT, Samples, key, scrape
from files import npy_request
from server import Server, serve

SECONDS = 60
PREDICTED = key("mcd_http_requests_total", route="/predict", method="POST", code="200")
WINDOW = key("mcd_drift_window_images", mode="eval")


def wait_until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def predict(client: httpx.Client) -> None:
    assert client.post("/predict", content=BOOT).status_code == 200


def kill_during_batches(server: Server, client: httpx.Client) -> int:
    """Kill all workers while batches are in work, and return how many of these were lost."""
    batch = npy_request(np.zeros((1000, 28, 28), np.uint8)) | {"params": {"samples": 100}, "timeout": SECONDS}
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(httpx.post, f"{server.url}/predict_batch", **batch) for _ in range(8)]
        wait_until(lambda: scrape(client)[key("mcd_http_requests_in_progress")] > 1)
        victims = server.worker_pids
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        lost = sum(one.exception() is not None for one in sent)
    wait_until(lambda: len(set(server.worker_pids) - set(victims)) == 2)
    return lost


def process_ids(home: Path) -> set[int]:
    """Those that have files of metrics."""
    return {int(path.stem.rpartition("_")[2]) for path in home.rglob("*.db")}


def test_counters_never_fall_and_gauges_stay_true(tmp_path):
    with (
        serve(tmp_path / "home", MCD_WORKERS="2", MCD_LOG_LEVEL="warning") as server,
        httpx.Client(base_url=server.url, timeout=SECONDS, transport=httpx.HTTPTransport(retries=100)) as client,
    ):
        for _ in range(10):
            predict(client)
        seen: list[Samples] = []

        def shows(condition: Callable[[Samples], bool]) -> bool:
            seen.append(scrape(client))
            return condition(seen[-1])

        wait_until(lambda: shows(lambda samples: samples[WINDOW] >= 10))
        first = seen[-1]
        assert kill_during_batches(server, client) > 0
        wait_until(lambda: shows(lambda samples: samples[key("mcd_workers")] == 2))
        for _ in range(10):
            predict(client)
            shows(lambda _: True)
        wait_until(lambda: shows(lambda samples: samples[key("mcd_http_requests_in_progress")] == 1))  # the scrape
        assert 0 in process_ids(tmp_path / "home")  # what the dead have counted
        assert all(pid == 0 or psutil.pid_exists(pid) for pid in process_ids(tmp_path / "home"))
    counters = [name for name in seen[0] if name[0].endswith(("_total", "_bucket", "_count", "_sum"))]
    for before, after in itertools.pairwise(seen):
        for name in counters:
            assert after[name] >= before[name], name
    assert seen[-1][key("mcd_workers")] == 2
    assert seen[-1][PREDICTED] == first[PREDICTED] + 10
    assert seen[-1][WINDOW] >= 20  # taken over from the dead
