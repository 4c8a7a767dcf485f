"""What two workers behind one address do together."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import missing
from exposition import BOOT, Samples, difference, key, scrape, send_mixed_traffic
from files import npy_request
from mixed_load import check_mixed_requests

from model import load_artifact

ROUTE = {"route": "/predict", "method": "POST"}


def scrape_until(client: httpx.Client, is_reached: Callable[[Samples], bool]) -> Samples:
    """Scrape until all workers have counted what they have noted."""
    end = time.monotonic() + 20
    while not is_reached(samples := scrape(client)):
        assert time.monotonic() < end
    return samples


def test_mixed_requests_at_once_are_answered_as_if_alone(served, served_server):
    check_mixed_requests(served_server, served, 100)
    pids = {str(pid) for pid in served_server.worker_pids}
    folder = served_server.home / "prometheus_multiproc_dir"
    assert len(pids) == (1 if served.settings else 2)
    assert pids <= {path.stem.rpartition("_")[2] for path in folder.glob("histogram_*.db")}


def test_health_is_answered_while_a_batch_is_computed(server, client):
    """Of either worker: each request has a connection of its own."""
    done = threading.Event()

    def send() -> None:
        many = npy_request(np.zeros((190, 28, 28), np.uint8))
        assert client.post("/predict_batch", params={"samples": 500}, **many).status_code == 200
        done.set()

    worker = threading.Thread(target=send)
    worker.start()
    answered = 0
    while not done.is_set():
        assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
        answered += 1
    worker.join()
    assert answered >= 3


def is_settled(samples: Samples) -> bool:
    """Whether each request to /predict, which is counted at once, is in the histogram too, which is counted later."""
    requests = sum(
        value
        for (name, *labels), value in samples.items()
        if name == "mcd_http_requests_total" and ROUTE.items() <= dict(labels).items()
    )
    return samples[key("mcd_http_request_duration_seconds_count", **ROUTE)] == requests


def test_counters_sum_over_workers(server, client):
    scrape_until(client, is_settled)
    before = scrape(client)
    for number in range(30):  # each on a connection of its own, so that either worker gets some
        sent = {"content": BOOT, "params": {"samples": 10, "seed": number}}
        assert httpx.post(f"{server.url}/predict", timeout=30, **sent).status_code == 200
    scrape_until(client, is_settled)
    grown = difference(before, scrape(client))
    assert grown("mcd_http_requests_total", code="200", **ROUTE) == 30
    assert grown("mcd_http_request_duration_seconds_count", **ROUTE) == 30
    assert grown("mcd_forward_passes_total") == grown("mcd_samples_per_prediction_sum") == 300


def test_gauges_sum_over_workers(client):
    artifact = load_artifact()
    info = {"model": artifact.sha256[:12], "recipe": artifact.card["recipe"]["name"]}
    now = scrape_until(client, lambda samples: samples[key("mcd_http_requests_in_progress")] == 1)  # the scrape
    assert now[key("mcd_model_info", **info)] == now[key("mcd_workers")] == 2
    assert now[key("mcd_ready")] == 1


def test_workers_share_what_feedback_has_taught(server, client):
    """Each request has a connection of its own, so that either worker gets some."""
    counted = key("mcd_coverage_feedback_images", mode="eval")
    before = scrape(client)[counted]
    images_B = np.random.default_rng(78).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    answers = client.post("/predict_batch", **npy_request(images_B)).json()["results"]
    for told, answer in enumerate(answers, start=1):
        body = {"image_hash": answer["preprocessing"]["image_hash"], "class_index": 3}
        assert httpx.post(f"{server.url}/feedback", json=body, timeout=30).status_code == 200
        with httpx.Client(base_url=server.url, timeout=30) as fresh:
            assert scrape(fresh)[counted] == before + told


def test_traffic_adds_no_series(client):
    before = scrape(client)
    send_mixed_traffic(client)
    assert set(scrape(client)) == set(before)


def test_promtool_accepts_the_exposition(client):
    if shutil.which("promtool") is None:
        missing("promtool, of Debian's package prometheus")
    exposition = client.get("/metrics").content
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs.json", "/metrics", "/ui"])
def test_pages_are_served_and_head_has_no_body(client, path):
    assert client.get(path).content
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_workers_have_no_training_framework_in_memory(client, server):
    assert client.post("/predict", files={"image": BOOT}, params={"samples": 100}).status_code == 200
    assert client.post("/predict", files={"image": BOOT}, params={"method": "moments"}).status_code == 200
    for pid in server.worker_pids:
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "onnxruntime" in mapped
        assert "libtorch" not in mapped
