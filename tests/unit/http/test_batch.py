"""Many images in one request, on the real server."""

import base64
import threading
import time

import bentoml
import httpx
import numpy as np
import pytest
import torch
from files import npy_request, png
from server import serve

from model import MonteCarloDropout, entropy, find_calibration, load_artifact, summarize
from training.data import FashionMNIST, as_inputs


@pytest.fixture(scope="module")
def pixels_BHW(fashion: FashionMNIST) -> np.ndarray:
    return fashion.test.images_B[:12].numpy().copy()


def results(client: httpx.Client, **request) -> list[dict]:
    response = client.post("/predict_batch", **request)
    assert response.status_code == 200, response.text
    return response.json()["results"]


def without_source(answer: dict) -> dict:
    return {name: value for name, value in answer.items() if name != "preprocessing"}


@pytest.mark.parametrize("params", [{}, {"samples": 30, "seed": 4}, {"method": "moments"}, {"samples": "auto"}])
def test_each_image_is_answered_as_if_it_were_alone(client, pixels_BHW, params):
    alone = [client.post("/predict", content=png(pixels), params=params).json() for pixels in pixels_BHW]
    files = [("images" if b % 2 else "image", png(pixels)) for b, pixels in enumerate(pixels_BHW)]
    assert results(client, files=files, params=params) == alone
    encoded = [base64.b64encode(png(pixels)).decode() for pixels in pixels_BHW]
    assert results(client, json={"images": encoded, **params}) == alone
    assert results(client, json=encoded, params=params) == alone
    expected = [without_source(answer) for answer in alone]
    assert [without_source(answer) for answer in results(client, params=params, **npy_request(pixels_BHW))] == expected
    arrays = results(client, json={"images": pixels_BHW.tolist(), **params})
    assert [without_source(answer) for answer in arrays] == expected


def test_one_bad_image_spoils_no_other(client, pixels_BHW):
    good = base64.b64encode(png(pixels_BHW[0])).decode()
    found = results(client, json=[good, "?", [[1]], 7, base64.b64encode(b"GIF89a").decode(), good])
    assert found[0] == found[-1] == client.post("/predict", content=png(pixels_BHW[0])).json()
    kinds = [one["error"]["type"].rpartition(":")[2] for one in found[1:-1]]
    assert kinds == ["invalid-parameter", "invalid-image", "invalid-parameter", "unsupported-image-format"]
    assert all(one.keys() == {"error"} and one["error"]["detail"] for one in found[1:-1])


@pytest.mark.parametrize("path", ["/predict_batch", "/rank"])
def test_what_is_too_much_is_refused_before_it_is_done(client, path):
    many = np.zeros((1001, 28, 28), np.uint8)
    for request, kind in (
        (npy_request(many), "too-many-images"),
        (npy_request(many[:101]) | {"params": {"samples": 1000}}, "too-much-work"),
        (npy_request(many[:101]) | {"params": {"samples": "auto"}}, "too-much-work"),
    ):
        start = time.monotonic()
        response = client.post(path, **request)
        assert (response.status_code, response.json()["type"]) == (413, f"urn:mcd:problem:{kind}")
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("request_", [{"content": b""}, {"json": []}, {"json": {"image": [1]}}, {"json": 5}])
def test_a_batch_of_nothing_is_refused(client, request_):
    for path in ("/predict_batch", "/rank"):
        assert client.post(path, **request_).status_code == 422


def test_the_probabilities_of_each_mask_are_returned_if_asked_for(client, pixels_BHW):
    params = {"samples": 20, "seed": 5, "return_samples": True}
    answers = results(client, params=params, **npy_request(pixels_BHW[:2]))
    mc = MonteCarloDropout(load_artifact().network)
    for pixels, answer in zip(pixels_BHW, answers, strict=False):
        expected = mc.sample(as_inputs(torch.from_numpy(pixels[None])), samples=20, seed=5)[:, 0]
        assert np.allclose(answer["sample_probabilities"], expected, atol=1e-6)
    assert "sample_probabilities" not in results(client, params={"samples": 20}, **npy_request(pixels_BHW[:1]))[0]
    assert client.post("/predict", content=png(pixels_BHW[0]), params={"return_samples": True}).status_code == 422


@pytest.mark.parametrize("by", ["bald", "entropy", "margin", "least_confidence"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_pool_is_ranked_by_what_is_said(client, pixels_BHW, by, calibrated):
    artifact = load_artifact()
    inputs_B = as_inputs(torch.from_numpy(pixels_BHW))
    found = summarize(MonteCarloDropout(artifact.network).sample(inputs_B, samples=50, seed=2))
    probs_BC = found.mean.numpy()
    if calibrated:
        probs_BC = find_calibration(artifact.calibrations, "masks", 50).probabilities(probs_BC)
    ascending_BC = np.sort(probs_BC, axis=1)
    expected = {
        "bald": found.mutual_information.numpy(),
        "entropy": entropy(torch.from_numpy(probs_BC)).numpy(),
        "margin": 1 - (ascending_BC[:, -1] - ascending_BC[:, -2]),
        "least_confidence": 1 - ascending_BC[:, -1],
    }[by]
    params = {"by": by, "samples": 50, "seed": 2, "calibrated": calibrated}
    answer = client.post("/rank", params=params, **npy_request(pixels_BHW)).json()
    assert answer["indices"] == np.argsort(-expected, kind="stable").tolist()
    assert answer["scores"] == pytest.approx(sorted(expected, reverse=True), abs=1e-6)
    assert (answer["by"], answer["samples"], answer["seed"], answer["errors"]) == (by, 50, 2, [])


def test_a_ranking_may_be_cut_and_names_what_it_could_not_read(client, pixels_BHW):
    images = [pixels.tolist() for pixels in pixels_BHW[:4]]
    whole = client.post("/rank", json={"images": images}).json()
    images.insert(1, "?")
    answer = client.post("/rank", json={"images": images, "limit": 2}).json()
    assert answer["samples"] == 100
    assert answer["indices"] == [index + (index >= 1) for index in whole["indices"][:2]]
    assert [(one["index"], one["error"]["status"]) for one in answer["errors"]] == [(1, 422)]
    moments = client.post("/rank", json={"images": images, "method": "moments"}).json()
    assert (moments["method"], moments["samples"], len(moments["indices"])) == ("moments", 0, 4)


def test_bentomls_client_sends_batches_too(server, client, pixels_BHW):
    images = [pixels.tolist() for pixels in pixels_BHW[:3]]
    with bentoml.SyncHTTPClient(server.url) as official:
        found = official.predict_batch(images=images, samples=20)
        assert found["results"] == results(client, json={"images": images, "samples": 20})
        assert official.rank(images=images)["indices"] == client.post("/rank", json=images).json()["indices"]


def test_others_are_answered_while_a_batch_is_worked_on(client, pixels_BHW):
    many = np.concatenate([pixels_BHW] * 16)[:190]
    done = threading.Event()

    def send() -> None:
        assert client.post("/predict_batch", params={"samples": 500}, **npy_request(many)).status_code == 200
        done.set()

    worker = threading.Thread(target=send)
    start = time.monotonic()
    worker.start()
    waits = []
    while not done.is_set():
        sent = time.monotonic()
        assert client.get("/livez").status_code == 200
        waits.append(time.monotonic() - sent)
    worker.join()
    assert len(waits) >= 3
    assert max(waits) < (time.monotonic() - start) / 2


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("hurried") / "home", MCD_MAX_SECONDS="0.2", MCD_MAX_IMAGES="5000") as running:
        yield running


def test_work_that_takes_too_long_ends(hurried):
    with httpx.Client(base_url=hurried.url, timeout=30) as client:
        response = client.post(
            "/predict_batch", params={"method": "moments"}, **npy_request(np.zeros((5000, 28, 28), np.uint8))
        )
        assert (response.status_code, response.json()["type"]) == (504, "urn:mcd:problem:deadline-exceeded")
        assert client.post("/predict_batch", **npy_request(np.zeros((2, 28, 28), np.uint8))).status_code == 200


def test_work_that_nobody_waits_for_ends(tmp_path, pixels_BHW):
    with serve(tmp_path / "home", MCD_MAX_IMAGES="20000", MCD_MAX_FORWARD_PASSES="100000000") as running:
        endless = npy_request(np.zeros((12_000, 28, 28), np.uint8))  # a minute and more
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/predict_batch", params={"samples": 1000}, timeout=1, **endless)
        start = time.monotonic()
        small = npy_request(pixels_BHW)  # waits for the same thread
        assert httpx.post(f"{running.url}/predict_batch", timeout=30, **small).status_code == 200
        assert time.monotonic() - start < 5
        assert 'code="499",method="POST",route="/predict_batch"} 1.0' in httpx.get(f"{running.url}/metrics").text
