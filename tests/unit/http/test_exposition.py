"""What the metrics of one process show."""

import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from application import client_of
from exposition import BOOT, Samples, difference, key, scrape, send_mixed_traffic
from files import npy_request, png

from service.schemas.problems import STATUSES

ADMIN = {"X-API-Key": "admin-key"}


@pytest.fixture(scope="module")
def client(served) -> Iterator[httpx.Client]:
    with client_of(MCD_ADMIN_KEYS="admin-key", MCD_LOG_LEVEL="warning", **served.settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def modes(served) -> list[str]:
    """Those that the network allows."""
    return ["eval", *({"masks": "mc"}.get(method, method) for method in served.methods)]


@pytest.fixture(scope="module", autouse=True)
def fresh(client: httpx.Client) -> Samples:
    """What is exposed before any other request."""
    return scrape(client)


def test_all_series_exist_from_the_start_and_none_is_added(client, served, fresh):
    send_mixed_traffic(client, served.artifact.input.pixel_shape, served.methods)
    assert client.post("/admin/reload").status_code == 401
    assert client.post("/admin/reload", headers=ADMIN).status_code == 200
    for number in range(500):
        client.get(f"/scan/{number}")
        client.request(("PROPFIND", "LOCK", "TRACE")[number % 3], f"/static_content/{number}")
    after = scrape(client)
    assert set(after) == set(fresh)
    assert len(after) < 1000
    assert all(name.startswith("mcd_") for name, *_ in after)
    assert after[key("mcd_http_requests_total", route="other", method="other", code="404")] >= 500


def test_metrics_count_what_was_asked_and_answered(client, served, modes):
    artifact, before = served.artifact, scrape(client)
    answers = [client.post("/predict", content=BOOT, params={"samples": 10, "seed": seed}).json() for seed in range(20)]
    answers.append(client.post("/predict", content=BOOT).json())
    client.post("/predict", content=b"no image")
    last = {"method": "moments"} if "moments" in modes else {}
    many = npy_request(np.zeros((7, *artifact.input.pixel_shape), np.uint8)) | {"params": last}
    answers.extend(client.post("/predict_batch", **many).json()["results"])
    grown = difference(before, scrape(client))
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
    counted = [answer["mode"] for answer in answers]
    for mode, name in {(answer["mode"], answer["label"]) for answer in answers}:
        count = sum((answer["mode"], answer["label"]) == (mode, name) for answer in answers)
        labels = {"model": artifact.sha256[:12], "mode": mode, "predicted_class": name}
        assert grown("mcd_predictions_total", **labels) == count
    for mode in modes:
        assert grown("mcd_predictive_entropy_ratio_count", mode=mode) == counted.count(mode)
    for mode in modes[1:]:
        spreads = [answer["uncertainty"] for answer in answers if answer["mode"] == mode]
        for name in ("predictive_entropy", "mutual_information"):
            expected = sum(spread[name] for spread in spreads) / np.log(len(artifact.classes))
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


def test_vote_agreement_is_the_fraction_of_agreeing_masks(client, served):
    before = scrape(client)
    answer = client.post(
        "/predict", content=png(served.pixels_B[5]), params={"samples": 50, "return_samples": True}
    ).json()
    grown = difference(before, scrape(client))
    votes = np.argmax(answer["sample_probabilities"], axis=1)
    assert grown("mcd_vote_agreement_ratio_sum") == pytest.approx(np.mean(votes == answer["class_index"]))
    assert 0.2 < np.mean(votes == answer["class_index"]) < 0.9


def test_feedback_is_counted(client, served):
    before = scrape(client)
    answer = client.post("/predict", content=BOOT, headers={"X-Request-ID": "told-1"}).json()
    image, index = answer["preprocessing"]["image_hash"], answer["class_index"]
    by_id = client.post("/feedback", json={"request_id": "told-1", "class_index": index})
    assert by_id.json() == {"predictions": 1, "right": 1}
    assert (
        client.post("/feedback", json={"image_hash": image, "label": served.artifact.classes[index - 1]}).json()[
            "right"
        ]
        == 0
    )
    now = scrape(client)
    grown = difference(before, now)
    assert grown("mcd_feedback_total", outcome="right") == 1
    assert grown("mcd_feedback_total", outcome="wrong") >= 1
    assert now[key("mcd_feedback_window_images")] >= 1
    assert now[key("mcd_feedback_accuracy_ratio")] == 0
    assert now[key("mcd_feedback_calibration_error_ratio")] > 0.9


def test_gauges_describe_model_and_build(client, served, modes):
    artifact = served.artifact
    info = {"model": artifact.sha256[:12], "recipe": artifact.card["recipe"]["name"]}
    now = scrape(client)
    assert now[key("mcd_model_info", **info)] == now[key("mcd_workers")] == 1
    assert now[key("mcd_ready")] == 1
    assert now[key("mcd_http_requests_in_progress")] == 1  # the scrape
    assert time.time() - 3600 < now[key("mcd_model_loaded_timestamp_seconds")] < time.time()
    assert [labels for name, *labels in now if name == "mcd_build_info"]
    for mode in modes:
        expected = artifact.card["metrics"]["test"][mode]["accuracy"]
        assert now[key("mcd_reference_accuracy_ratio", mode=mode)] == expected


def test_references_have_the_bounds_of_the_histograms(fresh, modes):
    for statistic in ("predictive_entropy", "mutual_information"):
        for mode in modes[1:]:
            names = (f"mcd_{statistic}_ratio_bucket", f"mcd_reference_{statistic}_bucket_ratio")
            live, reference = (
                {dict(labels)[label] for name, *labels in fresh if name == wanted and ("mode", mode) in labels}
                for wanted, label in zip(names, ("le", "bound"), strict=True)
            )
            assert reference == live - {"+Inf"}


def test_every_kind_of_problem_has_a_counter(fresh):
    assert {dict(labels)["reason"] for name, *labels in fresh if name == "mcd_requests_rejected_total"} == set(STATUSES)
