"""Memory under half an hour of mixed load: `make soak`. A service that leaks on purpose is caught by the same check."""

import base64
import itertools
import os
import threading
import time

import httpx
import numpy as np
import psutil
import pytest
from files import npy_request
from server import ROOT, Server, serve

pytestmark = pytest.mark.soak

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
IMAGES_BHW = np.random.default_rng(20).integers(0, 256, (20, 28, 28), dtype=np.uint8)
SECONDS = 60 * float(os.environ.get("MCD_SOAK_MINUTES", "30"))
_CONTROL_SECONDS = 60.0
_PAUSE = 0.01
_CLIENTS = 3
_MOST_GROWTH = 1.05


REQUESTS = [
    ("/predict", {"content": BOOT}, 200),
    ("/predict", {"content": BOOT, "params": {"samples": 100}}, 200),
    ("/predict", {"files": {"image": BOOT}, "data": {"samples": "300", "seed": "5"}}, 200),
    ("/predict", {"json": {"image": base64.b64encode(BOOT).decode(), "method": "moments"}}, 200),
    ("/predict", {"content": BOOT, "params": {"samples": 20, "return_samples": True}}, 200),
    ("/predict", {"content": BOOT[:100]}, 422),
    ("/predict", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
    ("/predict", {"content": BOOT, "params": {"samples": 1}}, 422),
    ("/predict_batch", npy_request(IMAGES_BHW) | {"params": {"samples": 50}}, 200),
    ("/rank", npy_request(IMAGES_BHW[:10]), 200),
    ("/v2/models/mcd/infer", {"content": b"{}"}, 422),
    ("/nothing", {"content": b""}, 404),
]


def memory(server: Server) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in server.worker_pids)


def growth(server: Server, seconds: float) -> float:
    """Memory at the end of a load against that after its first fifth; other seeds draw other masks all the time."""
    done = threading.Event()
    wrong: list[tuple[str, int]] = []
    seeds = itertools.count()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for path, request, status in itertools.cycle(REQUESTS):
                if done.is_set():
                    return
                params = dict(request.get("params", {}))
                if params.get("samples") == 100:
                    params["seed"] = next(seeds)
                response = client.post(path, **request | {"params": params})
                if response.status_code not in {status, 503}:
                    wrong.append((path, response.status_code))
                time.sleep(_PAUSE)

    threads = [threading.Thread(target=ask) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    found: list[int] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(seconds / 200)
        found.append(memory(server))
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    tenth = len(found) // 10
    return float(np.median(found[-tenth:]) / np.median(found[2 * tenth : 3 * tenth]))


def test_memory_does_not_grow(tmp_path):
    with serve(tmp_path / "home", MCD_LOG_LEVEL="warning") as server:
        assert growth(server, SECONDS) < _MOST_GROWTH


def test_a_leak_is_caught(tmp_path):
    with serve(tmp_path / "home", "tests.leaky:UncertaintyService", MCD_LOG_LEVEL="warning") as server:
        assert growth(server, _CONTROL_SECONDS) > _MOST_GROWTH
