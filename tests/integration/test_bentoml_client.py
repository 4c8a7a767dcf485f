"""BentoML's own client."""

import base64

import bentoml
import numpy as np
import pytest
from files import png


@pytest.fixture(scope="module")
def pixels_B(served) -> np.ndarray:
    return served.pixels_B[:3]


def test_predict_gives_the_answer_of_plain_http(served_server, served_client, pixels_B):
    with bentoml.SyncHTTPClient(served_server.url) as official:
        data, params = png(pixels_B[0]), {"samples": 40, "seed": 2}
        answer = official.predict(image=base64.b64encode(data).decode(), **params)
        assert answer == served_client.post("/predict", files={"image": data}, params=params).json()
        with pytest.raises(bentoml.exceptions.BentoMLException, match=r"samples must be 0, 2\.\.1000 or auto, got 1"):
            official.predict(image=pixels_B[0].tolist(), samples=1)


def test_predict_batch_and_rank_give_the_answers_of_plain_http(served_server, served_client, pixels_B):
    images = [pixels.tolist() for pixels in pixels_B]
    with bentoml.SyncHTTPClient(served_server.url) as official:
        expected = served_client.post("/predict_batch", json={"images": images, "samples": 20}).json()
        assert official.predict_batch(images=images, samples=20) == expected
        assert official.rank(images=images)["indices"] == served_client.post("/rank", json=images).json()["indices"]
