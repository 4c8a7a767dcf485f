"""Many images in one request."""

import base64

import httpx
import numpy as np
import pytest
from application import client_of
from files import npy_request, png

from model import MonteCarloDropout


@pytest.fixture(scope="module")
def pixels_B(served) -> np.ndarray:
    return served.pixels_B[:12]


def results(client: httpx.Client, **request) -> list[dict]:
    response = client.post("/predict_batch", **request)
    assert response.status_code == 200, response.text
    return response.json()["results"]


def without_source(answer: dict) -> dict:
    return {name: value for name, value in answer.items() if name != "preprocessing"}


@pytest.mark.parametrize("params", [{}, {"samples": 30, "seed": 4}, {"method": "moments"}, {"samples": "auto"}])
def test_each_image_is_answered_as_if_alone(client, served, pixels_B, params):
    if params.get("method", "masks") not in served.methods:
        response = client.post("/predict_batch", params=params, **npy_request(pixels_B))
        assert (response.status_code, "method must be masks" in response.json()["detail"]) == (422, True)
        return
    alone = [client.post("/predict", content=png(pixels), params=params).json() for pixels in pixels_B]
    files = [("images" if b % 2 else "image", png(pixels)) for b, pixels in enumerate(pixels_B)]
    assert results(client, files=files, params=params) == alone
    encoded = [base64.b64encode(png(pixels)).decode() for pixels in pixels_B]
    assert results(client, json={"images": encoded, **params}) == alone
    assert results(client, json=encoded, params=params) == alone
    expected = [without_source(answer) for answer in alone]
    assert [without_source(answer) for answer in results(client, params=params, **npy_request(pixels_B))] == expected
    arrays = results(client, json={"images": pixels_B.tolist(), **params})
    assert [without_source(answer) for answer in arrays] == expected


def test_a_bad_image_does_not_affect_the_others(client, pixels_B):
    good = base64.b64encode(png(pixels_B[0])).decode()
    found = results(client, json=[good, "?", [[1]], 7, base64.b64encode(b"GIF89a").decode(), good])
    assert found[0] == found[-1] == client.post("/predict", content=png(pixels_B[0])).json()
    kinds = [one["error"]["type"].rpartition(":")[2] for one in found[1:-1]]
    assert kinds == ["invalid-parameter", "invalid-image", "invalid-parameter", "unsupported-image-format"]
    assert all(one.keys() == {"error"} and one["error"]["detail"] for one in found[1:-1])


@pytest.mark.parametrize("path", ["/predict_batch", "/rank"])
def test_too_many_images_or_masks_are_refused_before_any_work(client, served, path):
    many = np.zeros((1001, *served.artifact.input.pixel_shape), np.uint8)
    for request, kind in (
        (npy_request(many), "too-many-images"),
        (npy_request(many[:101]) | {"params": {"samples": 1000}}, "too-much-work"),
        (npy_request(many[:101]) | {"params": {"samples": "auto"}}, "too-much-work"),
    ):
        response = client.post(path, **request)
        assert (response.status_code, response.json()["type"]) == (413, f"urn:mcd:problem:{kind}")


@pytest.mark.parametrize("request_", [{"content": b""}, {"json": []}, {"json": {"image": [1]}}, {"json": 5}])
def test_an_empty_batch_is_refused(client, request_):
    for path in ("/predict_batch", "/rank"):
        assert client.post(path, **request_).status_code == 422


def test_return_samples_gives_the_probabilities_of_each_mask(client, served, pixels_B):
    params = {"samples": 20, "seed": 5, "return_samples": True}
    answers = results(client, params=params, **npy_request(pixels_B[:2]))
    mc = MonteCarloDropout(served.network)
    for pixels, answer in zip(pixels_B, answers, strict=False):
        expected = mc.sample(served.inputs(pixels[None]), samples=20, seed=5)[:, 0]
        assert np.allclose(answer["sample_probabilities"], expected, atol=1e-6)
    assert "sample_probabilities" not in results(client, params={"samples": 20}, **npy_request(pixels_B[:1]))[0]
    assert client.post("/predict", content=png(pixels_B[0]), params={"return_samples": True}).status_code == 422


def test_as_many_arrays_as_images_are_allowed_fit_into_json(served, pixels_B):
    with client_of(**served.settings, MCD_MAX_IMAGES="5") as client:
        assert len(results(client, json={"images": pixels_B[:5].tolist()})) == 5
        many = client.post("/predict_batch", json={"images": pixels_B[:10].reshape(10, -1).tolist()})
        assert many.status_code == 413
