"""The true classes of predictions, sent afterwards."""

import pytest
from files import npy_request


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422), ({"label": "LABEL"}, 422), ({"request_id": "a"}, 422), ({"request_id": "a", "label": "hat"}, 422),
        ({"request_id": "a", "image_hash": "0" * 16, "label": "LABEL"}, 422),
        ({"image_hash": "0" * 15, "label": "LABEL"}, 422),
        ({"request_id": "a", "label": "LABEL", "class_index": 6}, 422),
        ({"request_id": "a", "class_index": "COUNT"}, 422), ({"request_id": "a", "class_index": -1}, 422),
        ({"request_id": "a", "class_index": True}, 422), ([], 422),
        ({"request_id": "a", "class_index": 6, "more": 1}, 422), ({"image_hash": "0" * 16, "class_index": 6}, 404),
        ("text", 422), ({"request_id": "", "class_index": 6}, 404), ({"request_id": "a" * 9999, "class_index": 6}, 404),
    ],
)  # fmt: skip
def test_invalid_feedback_is_refused(client, served, body, status):
    classes = served.artifact.classes
    if isinstance(body, dict):
        stands_for = {"LABEL": classes[6], "COUNT": len(classes)}
        body = {name: stands_for.get(value, value) for name, value in body.items()}
    assert client.post("/feedback", json=body).status_code == status


@pytest.mark.parametrize(
    ("body", "kind", "detail"),
    [
        ([], "invalid-body", "the JSON body must be an object, got list"),
        ("text", "invalid-body", "the JSON body must be an object, got str"),
        ({}, "invalid-parameter", "body must have either request_id or image_hash"),
        ({"request_id": "a", "class_index": 1, "more": 1}, "invalid-parameter", "more is unknown"),
        (
            {"request_id": "a", "label": 5},
            "invalid-parameter",
            "label input should be a valid string, got 5",
        ),
    ],
)
def test_a_refusal_says_what_is_wrong_in_the_words_of_predictions(client, body, kind, detail):
    problem = client.post("/feedback", json=body).json()
    assert (problem["type"], problem["detail"]) == (f"urn:mcd:problem:{kind}", detail)
    if kind == "invalid-body":
        assert client.post("/predict", json=body).json()["detail"] == detail


def test_feedback_on_a_batch_needs_the_image_hash(client, served):
    many = npy_request(served.pixels_B[:2])
    many["headers"] |= {"X-Request-ID": "several"}
    results = client.post("/predict_batch", **many).json()["results"]
    refused = client.post("/feedback", json={"request_id": "several", "class_index": 1})
    assert (refused.status_code, "image_hash" in refused.json()["detail"]) == (422, True)
    told = {"image_hash": results[0]["preprocessing"]["image_hash"], "class_index": results[0]["class_index"]}
    assert client.post("/feedback", json=told).json() == {"predictions": 1, "right": 1}
