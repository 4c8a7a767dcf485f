"""Images in the order in which labels would help most."""

import numpy as np
import pytest
import torch
from files import npy_request

from model import MonteCarloDropout, entropy, find_calibration, summarize


@pytest.fixture(scope="module")
def pixels_B(served) -> np.ndarray:
    return served.pixels_B[:12]


@pytest.mark.parametrize("by", ["bald", "entropy", "margin", "least_confidence"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_images_are_ranked_by_the_chosen_score(client, served, pixels_B, by, calibrated):
    found = summarize(MonteCarloDropout(served.network).sample(served.inputs(pixels_B), samples=50, seed=2))
    probs_BC = found.mean.numpy()
    if calibrated:
        probs_BC = find_calibration(served.artifact.calibrations, "masks", 50).probabilities(probs_BC)
    ascending_BC = np.sort(probs_BC, axis=1)
    expected = {
        "bald": found.mutual_information.numpy(),
        "entropy": entropy(torch.from_numpy(probs_BC)).numpy(),
        "margin": 1 - (ascending_BC[:, -1] - ascending_BC[:, -2]),
        "least_confidence": 1 - ascending_BC[:, -1],
    }[by]
    params = {"by": by, "samples": 50, "seed": 2, "calibrated": calibrated}
    answer = client.post("/rank", params=params, **npy_request(pixels_B)).json()
    assert answer["indices"] == np.argsort(-expected, kind="stable").tolist()
    assert answer["scores"] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert (answer["by"], answer["samples"], answer["seed"], answer["errors"]) == (by, 50, 2, [])


def test_a_ranking_can_be_limited_and_lists_unreadable_images(client, served, pixels_B):
    images = [pixels.tolist() for pixels in pixels_B[:4]]
    whole = client.post("/rank", json={"images": images}).json()
    images.insert(1, "?")
    answer = client.post("/rank", json={"images": images, "limit": 2}).json()
    assert answer["samples"] == 100
    assert answer["indices"] == [index + (index >= 1) for index in whole["indices"][:2]]
    assert [(one["index"], one["error"]["status"]) for one in answer["errors"]] == [(1, 422)]
    if "moments" in served.methods:
        moments = client.post("/rank", json={"images": images, "method": "moments"}).json()
        assert (moments["method"], moments["samples"], len(moments["indices"])) == ("moments", 0, 4)
