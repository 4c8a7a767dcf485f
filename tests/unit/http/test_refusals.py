"""Refused requests to /predict: status, kind of problem and reason."""

import numpy as np
import pytest
from files import encoded, png
from PIL import Image

REFUSALS = {
    "no image": ({"data": {"samples": "3"}, "files": {"picture": b"x"}}, 422, "invalid-parameter"),
    "empty body": ({"content": b""}, 422, "invalid-parameter"),
    "text file": ({"content": b"hello", "headers": {"Content-Type": "image/png"}}, 415, "unsupported-image-format"),
    "gif": ({"files": {"image": b"GIF89a" + bytes(50)}}, 415, "unsupported-image-format"),
    "plain text": ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported-media-type"),
    "broken json": ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "malformed-body"),
    "wrong shape": ({"json": {"image": [[0] * 23] * 19}}, 422, "invalid-image"),
    "no boundary": (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "malformed-body",
    ),
    "broken form": (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        400,
        "malformed-body",
    ),
    "two images": ({"files": [("image", b"a"), ("image", b"b")]}, 422, "invalid-parameter"),
    "image as text": ({"data": {"image": "abc"}, "files": {"x": b""}}, 422, "invalid-parameter"),
    "many fields": ({"files": [(f"f{i}", b"a") for i in range(50)]}, 400, "malformed-body"),
    "one sample": ({"content": b"x", "params": {"samples": 1}}, 422, "invalid-parameter"),
    "typo": ({"content": b"x", "params": {"sampels": 10}}, 422, "invalid-parameter"),
    "contradiction": (
        {"files": {"image": b"x"}, "data": {"seed": "1"}, "params": {"seed": 2}},
        422,
        "invalid-parameter",
    ),
    "large body": ({"content": bytes(11 * 2**20)}, 413, "body-too-large"),
    "large body in chunks": ({"content": [bytes(2**20)] * 11}, 413, "body-too-large"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_input_is_refused_with_its_reason(client, case):
    request, status, kind = REFUSALS[case]
    response = client.post("/predict", **request)
    problem = response.json()
    assert (response.status_code, problem["type"]) == (status, f"urn:mcd:problem:{kind}")
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["detail"]


def test_truncated_images_are_refused(client, served):
    whole = png(np.random.default_rng(5).integers(0, 256, served.artifact.input.pixel_shape, dtype=np.uint8))
    for end in (20, 60, -60):
        assert client.post("/predict", content=whole[:end]).status_code in {415, 422}


def test_a_huge_image_is_refused_by_its_header(client):
    response = client.post("/predict", content=encoded(Image.new("1", (6000, 5000))))
    assert (response.status_code, response.json()["type"]) == (413, "urn:mcd:problem:image-too-large")
