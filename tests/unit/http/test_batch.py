"""Many images in one request."""

import base64

import httpx
import numpy as np
import pytest
import torch
from files import npy_request, png

from model import MonteCarloDropout, load_artifact
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
def test_each_image_is_answered_as_if_alone(client, pixels_BHW, params):
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


def test_a_bad_image_does_not_affect_the_others(client, pixels_BHW):
    good = base64.b64encode(png(pixels_BHW[0])).decode()
    found = results(client, json=[good, "?", [[1]], 7, base64.b64encode(b"GIF89a").decode(), good])
    assert found[0] == found[-1] == client.post("/predict", content=png(pixels_BHW[0])).json()
    kinds = [one["error"]["type"].rpartition(":")[2] for one in found[1:-1]]
    assert kinds == ["invalid-parameter", "invalid-image", "invalid-parameter", "unsupported-image-format"]
    assert all(one.keys() == {"error"} and one["error"]["detail"] for one in found[1:-1])


@pytest.mark.parametrize("path", ["/predict_batch", "/rank"])
def test_too_many_images_or_masks_are_refused_before_any_work(client, path):
    many = np.zeros((1001, 28, 28), np.uint8)
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


def test_return_samples_gives_the_probabilities_of_each_mask(client, pixels_BHW):
    params = {"samples": 20, "seed": 5, "return_samples": True}
    answers = results(client, params=params, **npy_request(pixels_BHW[:2]))
    mc = MonteCarloDropout(load_artifact().network)
    for pixels, answer in zip(pixels_BHW, answers, strict=False):
        expected = mc.sample(as_inputs(torch.from_numpy(pixels[None])), samples=20, seed=5)[:, 0]
        assert np.allclose(answer["sample_probabilities"], expected, atol=1e-6)
    assert "sample_probabilities" not in results(client, params={"samples": 20}, **npy_request(pixels_BHW[:1]))[0]
    assert client.post("/predict", content=png(pixels_BHW[0]), params={"return_samples": True}).status_code == 422
