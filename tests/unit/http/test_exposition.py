"""What Prometheus would see of real servers."""

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from conftest import missing
from files import npy_request
from prometheus_client.parser import text_string_to_metric_families
from server import ROOT, Server, serve

from model import load_artifact
from service.monitoring.metrics import FLUSH_SECONDS
from service.schemas.problems import STATUSES

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
Samples = dict[tuple, float]


def scraped(url: str) -> Samples:
    """Each sample by name and labels, once all workers have counted what they have noted."""
    time.sleep(2 * FLUSH_SECONDS)
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
    return {key(sample.name, **sample.labels): sample.value for family in families for sample in family.samples}


def key(name: str, **labels: str) -> tuple:
    return (name, *sorted(labels.items()))


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[Server]:
    settings = {"MCD_WORKERS": "2", "MCD_ADMIN_KEYS": "admin-key", "MCD_LOG_LEVEL": "warning"}
    with serve(tmp_path_factory.mktemp("watched") / "home", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def fresh(watched: Server) -> Samples:
    return scraped(watched.url)


@pytest.fixture
def watched_client(watched: Server, fresh: Samples) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=watched.url, timeout=30) as opened:
        yield opened


def growth(url: str, act: Callable[[], object]) -> Callable[..., float]:
    before = scraped(url)
    act()
    after = scraped(url)

    def grown(name: str, **labels: str) -> float:
        return after[key(name, **labels)] - before[key(name, **labels)]

    return grown


def infer_request() -> dict:
    tensor = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784}
    return {"inputs": [tensor], "parameters": {"samples": 10}}


def mixed_traffic(client: httpx.Client) -> None:
    images_BHW = np.random.default_rng(3).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for params in ({}, {"samples": 30}, {"samples": "auto"}, {"method": "moments"}, {"samples": 5}, {"coverage": 0.99}):
        assert client.post("/predict", content=BOOT, params=params).status_code == 200
        assert client.post("/predict_batch", params=params, **npy_request(images_BHW)).status_code == 200
    assert client.post("/rank", **npy_request(images_BHW)).status_code == 200
    assert client.post("/v2/models/mcd/infer", json=infer_request()).status_code == 200
    assert client.post("/v2/models/mcd/versions/1/infer", json=infer_request()).status_code == 200
    for path in (
        "/",
        "/livez",
        "/readyz",
        "/healthz",
        "/schema.json",
        "/docs.json",
        "/v2",
        "/v2/models/mcd",
        "/metrics",
        "/card.json",
        "/ui",
        "/ui/main.js",
    ):
        assert client.get(path).status_code == 200
        assert client.head(path).status_code in {200, 405}
    client.get("/static_content/swagger-ui.css")
    assert client.get("/ui", headers={"If-None-Match": "*"}).status_code == 304
    assert client.get("/ui/").status_code == 308
    assert client.get("/ui/other").status_code == 404
    for request in ({"content": b"x"}, {"content": BOOT, "params": {"samples": 1}}, {"json": []}, {"content": b""}):
        assert client.post("/predict", **request).status_code in {415, 422}
    assert client.post("/predict", content=BOOT, params={"seed": "0" * 9000}).status_code == 414
    assert client.post("/predict", content=BOOT, headers={"X": "x" * 20_000}).status_code == 431
    assert client.post("/feedback", json={"request_id": "unknown", "label": "bag"}).status_code == 404
    assert client.post("/admin/reload").status_code == 401
    assert client.post("/admin/reload", headers={"X-API-Key": "admin-key"}).status_code == 200
    for method, path in (("PROPFIND", "/coffee"), ("DELETE", "/predict"), ("POST", "/"), ("PUT", "/static_content/x")):
        assert client.request(method, path).status_code in {404, 405}


def test_every_series_is_there_from_the_start_and_none_is_added(watched, fresh, watched_client):
    mixed_traffic(watched_client)
    for number in range(2500):
        watched_client.get(f"/scan/{number}")
        watched_client.request(("PROPFIND", "LOCK", "TRACE")[number % 3], f"/static_content/{number}")
    after = scraped(watched.url)
    assert set(after) == set(fresh)
    assert len(after) < 1000
    assert all(name.startswith("mcd_") for name, *_ in after)
    assert after[key("mcd_http_requests_total", route="other", method="other", code="404")] >= 2500


def test_what_was_asked_is_what_is_counted(watched, watched_client):
    artifact = load_artifact()
    answers = []

    def act() -> None:
        for seed in range(20):
            params = {"samples": 10, "seed": seed}
            answers.append(watched_client.post("/predict", content=BOOT, params=params).json())
        answers.append(watched_client.post("/predict", content=BOOT).json())
        watched_client.post("/predict", content=b"no image")
        many = npy_request(np.zeros((7, 28, 28), np.uint8)) | {"params": {"method": "moments"}}
        answers.extend(watched_client.post("/predict_batch", **many).json()["results"])

    grown = growth(watched.url, act)
    route = {"route": "/predict", "method": "POST"}
    assert grown("mcd_http_requests_total", code="200", **route) == 21
    assert grown("mcd_http_requests_total", code="415", **route) == 1
    assert grown("mcd_requests_rejected_total", reason="unsupported-image-format") == 1
    assert grown("mcd_http_request_duration_seconds_count", **route) == 22
    assert grown("mcd_samples_per_prediction_sum") == 200
    assert grown("mcd_samples_per_prediction_bucket", le="0.0") == 8
    assert grown("mcd_forward_passes_total") == 208
    assert grown("mcd_batch_size_images_bucket", le="1.0") == 22
    assert grown("mcd_batch_size_images_sum") == 29
    modes = [answer["mode"] for answer in answers]
    for mode, name in {(answer["mode"], answer["label"]) for answer in answers}:
        count = sum((answer["mode"], answer["label"]) == (mode, name) for answer in answers)
        labels = {"model": artifact.sha256[:12], "mode": mode, "predicted_class": name}
        assert grown("mcd_predictions_total", **labels) == count
    for mode in ("eval", "mc", "moments"):
        assert grown("mcd_predictive_entropy_ratio_count", mode=mode) == modes.count(mode)
    for mode in ("mc", "moments"):
        spreads = [answer["uncertainty"] for answer in answers if answer["mode"] == mode]
        for name in ("predictive_entropy", "mutual_information"):
            expected = sum(spread[name] for spread in spreads) / np.log(10)
            assert grown(f"mcd_{name}_ratio_sum", mode=mode) == pytest.approx(expected)
    assert grown("mcd_confidence_ratio_sum") == pytest.approx(sum(answer["confidence"] for answer in answers))
    scores = sum(max(answer["novelty"]["score"], 0) for answer in answers)
    assert grown("mcd_novelty_score_sum") == pytest.approx(scores)
    assert grown("mcd_prediction_set_size_classes_sum") == sum(len(answer["prediction_set"]) for answer in answers)
    for reason in ("risk", "novelty"):
        expected = sum(answer["abstain_reason"] == reason for answer in answers)
        assert grown("mcd_abstentions_total", reason=reason) == expected
    assert grown("mcd_stage_duration_seconds_count", stage="infer") == 22
    assert grown("mcd_vote_agreement_ratio_count") == 20


def test_agreement_is_the_part_of_the_masks_that_vote_so(watched, watched_client):
    shirt = (ROOT / "docs" / "images" / "fashion-mnist-t-shirt.png").read_bytes()
    answers = []

    def act() -> None:
        asked = {"samples": 50, "return_samples": True}
        answers.append(watched_client.post("/predict", content=shirt, params=asked).json())

    grown = growth(watched.url, act)
    votes = np.argmax(answers[0]["sample_probabilities"], axis=1)
    assert grown("mcd_vote_agreement_ratio_sum") == pytest.approx(np.mean(votes == answers[0]["class_index"]))
    assert 0.2 < np.mean(votes == answers[0]["class_index"]) < 0.9


def test_feedback_is_counted_and_told_of(watched, watched_client):
    def act() -> None:
        sent = {"content": BOOT, "headers": {"X-Request-ID": "told-1"}}
        image = watched_client.post("/predict", **sent).json()["preprocessing"]["image_hash"]
        by_id = watched_client.post("/feedback", json={"request_id": "told-1", "class_index": 9})
        assert by_id.json() == {"predictions": 1, "right": 1}
        assert watched_client.post("/feedback", json={"image_hash": image, "label": "bag"}).json()["right"] == 0

    grown = growth(watched.url, act)
    assert grown("mcd_feedback_total", outcome="right") == 1
    assert grown("mcd_feedback_total", outcome="wrong") >= 1
    now = scraped(watched.url)
    assert now[key("mcd_feedback_window_images")] >= 1
    assert now[key("mcd_feedback_accuracy_ratio")] == 0
    assert now[key("mcd_feedback_calibration_error_ratio")] > 0.9


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422), ({"label": "bag"}, 422), ({"request_id": "a"}, 422), ({"request_id": "a", "label": "hat"}, 422),
        ({"request_id": "a", "image_hash": "0" * 16, "label": "bag"}, 422),
        ({"image_hash": "0" * 15, "label": "bag"}, 422),
        ({"request_id": "a", "label": "bag", "class_index": 8}, 422), ({"request_id": "a", "class_index": 10}, 422),
        ({"request_id": "a", "class_index": -1}, 422), ({"request_id": "a", "class_index": True}, 422), ([], 422),
        ({"request_id": "a", "class_index": 8, "more": 1}, 422), ({"image_hash": "0" * 16, "class_index": 8}, 404),
        ("text", 422), ({"request_id": "", "class_index": 8}, 404), ({"request_id": "a" * 9999, "class_index": 8}, 404),
    ],
)  # fmt: skip
def test_feedback_about_nothing_is_refused(watched_client, body, status):
    assert watched_client.post("/feedback", json=body).status_code == status


def test_an_id_of_several_images_needs_more(watched_client):
    many = npy_request(np.random.default_rng(4).integers(0, 256, (2, 28, 28), dtype=np.uint8))
    many["headers"] |= {"X-Request-ID": "several"}
    results = watched_client.post("/predict_batch", **many).json()["results"]
    refused = watched_client.post("/feedback", json={"request_id": "several", "class_index": 1})
    assert (refused.status_code, "image_hash" in refused.json()["detail"]) == (422, True)
    told = {"image_hash": results[0]["preprocessing"]["image_hash"], "class_index": results[0]["class_index"]}
    assert watched_client.post("/feedback", json=told).json() == {"predictions": 1, "right": 1}


def test_gauges_tell_of_the_server(watched, fresh):
    artifact = load_artifact()
    info = {"model": artifact.sha256[:12], "recipe": artifact.card["recipe"]["name"]}
    now = scraped(watched.url)
    assert now[key("mcd_model_info", **info)] == now[key("mcd_workers")] == 2
    assert now[key("mcd_ready")] == 1
    assert now[key("mcd_http_requests_in_progress")] == 1  # the scrape
    assert time.time() - 600 < now[key("mcd_model_loaded_timestamp_seconds")] < time.time()
    assert [labels for name, *labels in now if name == "mcd_build_info"]
    for mode in ("eval", "mc", "moments"):
        expected = artifact.card["metrics"]["test"][mode]["accuracy"]
        assert now[key("mcd_reference_accuracy_ratio", mode=mode)] == expected


def test_references_have_the_bounds_of_the_histograms(fresh):
    for statistic in ("predictive_entropy", "mutual_information"):
        for mode in ("mc", "moments"):
            names = (f"mcd_{statistic}_ratio_bucket", f"mcd_reference_{statistic}_bucket_ratio")
            live, reference = (
                {dict(labels)[label] for name, *labels in fresh if name == wanted and ("mode", mode) in labels}
                for wanted, label in zip(names, ("le", "bound"), strict=True)
            )
            assert reference == live - {"+Inf"}


def test_what_promtool_says_of_it(watched):
    if shutil.which("promtool") is None:
        missing("promtool, of Debian's package prometheus")
    exposition = httpx.get(f"{watched.url}/metrics").content
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_scrape_is_answered_while_more_is_asked_than_is_taken_on(tmp_path):
    settings = {"MCD_MAX_IN_FLIGHT": "1", "MCD_MAX_BATCHES_IN_FLIGHT": "1", "MCD_LOG_LEVEL": "warning"}
    with serve(tmp_path / "home", **settings) as server, ThreadPoolExecutor(24) as pool:
        batch = npy_request(np.zeros((1000, 28, 28), np.uint8)) | {"params": {"samples": 100}, "timeout": 60}
        asked = [pool.submit(httpx.post, f"{server.url}/predict_batch", **batch) for _ in range(24)]
        samples = [scraped(server.url) for _ in range(3)]
        codes = [one.result().status_code for one in asked]
        assert {200, 503} == set(codes)
        last = scraped(server.url)
        assert last[key("mcd_requests_rejected_total", reason="overloaded")] == codes.count(503)
        assert all(one[key("mcd_workers")] == 1 for one in samples)


def test_counters_never_fall_and_gauges_are_true_when_a_worker_is_killed(tmp_path):
    with serve(tmp_path / "home", MCD_WORKERS="2", MCD_LOG_LEVEL="warning") as server:
        batch = npy_request(np.zeros((1000, 28, 28), np.uint8)) | {"params": {"samples": 100}, "timeout": 60}
        for _ in range(10):
            httpx.post(f"{server.url}/predict", content=BOOT)
        seen = [scraped(server.url)]
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(httpx.post, f"{server.url}/predict_batch", **batch) for _ in range(8)]
            time.sleep(0.5)
            for pid in server.worker_pids:
                os.kill(pid, signal.SIGKILL)
            lost = [one for one in asked if one.exception() is not None]
        assert lost  # some was in work
        end = time.monotonic() + 30
        while time.monotonic() < end and len(server.worker_pids) < 2:
            time.sleep(0.2)
        time.sleep(3)
        for _ in range(10):
            httpx.post(f"{server.url}/predict", content=BOOT)
            seen.append(scraped(server.url))
        files = [path.name for path in (tmp_path / "home").rglob("*.db")]
        pids = {int(name.removesuffix(".db").rpartition("_")[2]) for name in files}
        assert 0 in pids  # what the dead have counted
        assert all(pid == 0 or psutil.pid_exists(pid) for pid in pids)
    counters = [name for name in seen[0] if name[0].endswith(("_total", "_bucket", "_count", "_sum"))]
    for before, after in itertools.pairwise(seen):
        for name in counters:
            assert after[name] >= before[name], name
    assert seen[-1][key("mcd_http_requests_in_progress")] == 1  # the scrape
    assert seen[-1][key("mcd_workers")] == 2
    answered = key("mcd_http_requests_total", route="/predict", method="POST", code="200")
    assert seen[-1][answered] == seen[0][answered] + 10
    assert seen[-1][key("mcd_drift_window_images", mode="eval")] >= 20  # taken over from the dead


def test_every_problem_has_a_reason(fresh):
    assert {dict(labels)["reason"] for name, *labels in fresh if name == "mcd_requests_rejected_total"} == set(STATUSES)
