"""The true classes of predictions, sent afterwards."""

import numpy as np
import pytest
from files import npy_request


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
def test_invalid_feedback_is_refused(client, body, status):
    assert client.post("/feedback", json=body).status_code == status


def test_feedback_on_a_batch_needs_the_image_hash(client):
    many = npy_request(np.random.default_rng(4).integers(0, 256, (2, 28, 28), dtype=np.uint8))
    many["headers"] |= {"X-Request-ID": "several"}
    results = client.post("/predict_batch", **many).json()["results"]
    refused = client.post("/feedback", json={"request_id": "several", "class_index": 1})
    assert (refused.status_code, "image_hash" in refused.json()["detail"]) == (422, True)
    told = {"image_hash": results[0]["preprocessing"]["image_hash"], "class_index": results[0]["class_index"]}
    assert client.post("/feedback", json=told).json() == {"predictions": 1, "right": 1}
