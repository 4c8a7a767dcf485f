"""Answers of /predict against the library."""

import base64
import math
import re
from typing import get_args

import httpx
import numpy as np
import pytest
from files import encoded, png
from PIL import Image

from model import MonteCarloDropout, summarize
from model.calibration import RISKS, SetMethod, find_calibration


@pytest.fixture(scope="module")
def pixels(served) -> np.ndarray:
    return served.pixels_B[0]


def post(client: httpx.Client, pixels: np.ndarray, **params: object) -> dict:
    response = client.post("/predict", files={"image": png(pixels)}, params=params)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_answer_is_what_the_library_computes(client, served):
    mc, images = MonteCarloDropout(served.network), served.pixels_B[:10]
    inputs = served.inputs(images)
    expected = summarize(mc.sample(inputs, samples=30, seed=5))
    probs_BC = mc.predict(inputs)
    for b, pixels in enumerate(images):
        answer = post(client, pixels, samples=30, seed=5, calibrated=False)
        assert answer["probabilities"] == pytest.approx(expected.mean[b].tolist(), rel=1e-5, abs=1e-9)
        for name, value in answer["uncertainty"].items():
            assert value == pytest.approx(getattr(expected, name)[b].tolist(), rel=1e-4, abs=1e-7)
        raw = post(client, pixels, calibrated=False)
        assert raw["probabilities"] == pytest.approx(probs_BC[b].tolist(), rel=1e-5, abs=1e-9)
        assert (answer["calibrated"], raw["calibrated"]) == (False, False)
        assert answer["label"] == served.artifact.classes[answer["class_index"]]


def test_probabilities_sets_and_abstention_follow_the_calibration(client, served):
    artifact, images = served.artifact, served.pixels_B[:40]
    expected_BC = summarize(MonteCarloDropout(served.network).sample(served.inputs(images), samples=100)).mean.numpy()
    calibration = find_calibration(artifact.calibrations, "masks", 100)
    probs_BC = calibration.probabilities(expected_BC)
    reasons = []
    for probs_C, score, pixels in zip(probs_BC, served.novelty(images), images, strict=True):
        answer = post(client, pixels, samples=100)
        assert answer["calibrated"]
        assert answer["calibration"] == {"estimator": "masks", "samples": 100}
        assert answer["probabilities"] == pytest.approx(probs_C.tolist(), rel=1e-3, abs=1e-7)
        assert answer["confidence"] == max(answer["probabilities"])
        likely = [c for c in np.argsort(-probs_C) if 1 - probs_C[c] <= calibration.set_scores["lac"][0.9]]
        assert answer["prediction_set"] == [artifact.classes[c] for c in likely]
        assert answer["novelty"]["score"] == pytest.approx(score, rel=1e-3, abs=1e-3)
        is_novel = score > artifact.novelty.thresholds[0.01]
        assert answer["novelty"]["flagged"] == is_novel
        reason = "novelty" if is_novel else "risk" if probs_C.max() < calibration.confidences[0.05] else None
        assert (answer["abstain"], answer["abstain_reason"]) == (reason is not None, reason)
        assert answer["abstain_threshold"] == calibration.confidences[0.05]
        raw = post(client, pixels, samples=100, calibrated=False)  # which changes what is shown, not what is decided
        for name in ("prediction_set", "abstain", "abstain_reason", "novelty", "label"):
            assert raw[name] == answer[name], name
        reasons.append(reason)
    assert {"risk", None} <= set(reasons)


def test_coverage_enlarges_sets_and_risk_allows_more_answers(client, served):
    images, calibration = served.pixels_B[:40], find_calibration(served.artifact.calibrations, "eval", 0)
    for method in get_args(SetMethod):
        sizes = [
            sum(len(post(client, pixels, coverage=coverage, set_method=method)["prediction_set"]) for pixels in images)
            for coverage, threshold in calibration.set_scores[method].items()
            if threshold is not None
        ]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]
    answered = [sum(not post(client, pixels, max_risk=risk)["abstain"] for pixels in images) for risk in RISKS]
    assert answered == sorted(answered)
    assert answered[0] < answered[-1]


def test_mondrian_sets_follow_the_threshold_of_each_class(client, served):
    artifact, images = served.artifact, served.pixels_B
    probs_BC = MonteCarloDropout(served.network).predict(served.inputs(images)).numpy()
    calibration = find_calibration(artifact.calibrations, "eval", 0)
    threshold_C = np.array([math.inf if one is None else one for one in calibration.set_scores["mondrian"][0.9]])
    sets = []
    for probs_C, pixels in zip(calibration.probabilities(probs_BC), images, strict=True):
        sets.append(post(client, pixels, set_method="mondrian")["prediction_set"])
        if np.abs(1 - probs_C - threshold_C).min() > 1e-6:  # else rounding decides
            assert sets[-1] == [artifact.classes[c] for c in np.argsort(-probs_C) if 1 - probs_C[c] <= threshold_C[c]]
    batch = client.post(
        "/predict_batch", files=[("images", png(pixels)) for pixels in images[:3]], params={"set_method": "mondrian"}
    )
    assert [one["prediction_set"] for one in batch.json()["results"]] == sets[:3]
    assert sets != [post(client, pixels)["prediction_set"] for pixels in images]


def test_the_same_image_and_seed_have_the_same_adaptive_set(client, served):
    for pixels in served.pixels_B[:20]:
        one, other = (post(client, pixels, set_method="aps", seed=3) for _ in range(2))
        assert one["prediction_set"] == other["prediction_set"]


def test_few_masks_are_answered_as_not_calibrated(client, pixels):
    answer = post(client, pixels, samples=5)
    assert answer["warnings"] == ["5 masks are not calibrated, 10 and more are: probabilities are raw, without a set"]
    assert (answer["calibrated"], answer["calibration"], answer["prediction_set"]) == (False, None, None)
    assert answer["abstain_threshold"] is None


def test_answers_contain_mode_samples_and_seed(client, pixels):
    assert {name: post(client, pixels)[name] for name in ("mode", "samples", "seed")} == {
        "mode": "eval", "samples": 0, "seed": 0,
    }  # fmt: skip
    answer = post(client, pixels, samples=20, seed=9)
    assert (answer["mode"], answer["samples"], answer["seed"]) == ("mc", 20, 9)


def test_automatic_samples_answer_as_that_number_does(client, served):
    def error_of(answer: dict) -> float:
        return answer["uncertainty"]["standard_error"][answer["class_index"]]

    images, used = served.pixels_B[:30], set()
    tolerance = float(np.median([error_of(post(client, pixels, samples=20)) for pixels in images]).round(4))
    for pixels in images:
        answer = post(client, pixels, samples="auto", tolerance=tolerance, max_samples=40)
        assert answer == post(client, pixels, samples=answer["samples"]) | {"warnings": answer["warnings"]}
        is_met = error_of(answer) <= tolerance
        if not is_met:
            assert answer["samples"] == 40
            message = rf"the standard error is 0\.\d+ after 40 samples, not {tolerance}"
            assert re.fullmatch(message, answer["warnings"][0])
        used.add((answer["samples"], is_met))
    assert {(20, True), (40, False)} <= used


def test_seeds_change_answers_and_more_samples_reduce_the_error(client, served):
    pixels = served.pixels_B[5]  # which leaves the network in doubt
    one, other = (post(client, pixels, samples=50, seed=seed) for seed in (0, 1))
    assert one["probabilities"] != other["probabilities"]
    few, many = (max(post(client, pixels, samples=n)["uncertainty"]["standard_error"]) for n in (10, 1000))
    assert many < few / 3


def ways_to_send(pixels: np.ndarray) -> dict[str, dict]:
    """The same image in every way that keeps its pixels."""
    rows, data = pixels.tolist(), png(pixels)
    text = base64.b64encode(data).decode()
    lossless = encoded(Image.fromarray(pixels), "WEBP", lossless=True)
    return {
        "form": {"files": {"image": data}, "data": {"samples": "30", "seed": "3"}},
        "form and query": {"files": {"image": data}, "params": {"samples": 30, "seed": 3}},
        "raw": {"content": data, "params": {"samples": 30, "seed": 3}},
        "raw, typed": {
            "content": data,
            "params": {"samples": 30, "seed": 3},
            "headers": {"Content-Type": "image/png; charset=binary"},
        },
        "curl --data-binary": {
            "content": data,
            "params": {"samples": 30, "seed": 3},
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        },
        "webp": {"content": lossless, "params": {"samples": 30, "seed": 3}},
        "base64": {"json": {"image": text, "samples": 30, "seed": 3}},
        "data url": {"json": {"image": f"data:image/png;base64,{text}", "samples": 30}, "params": {"seed": 3}},
        "rows": {"json": {"image": rows, "samples": 30, "seed": 3}},
        "flat": {"json": {"image": pixels.ravel().tolist(), "samples": 30, "seed": 3}},
        "floats": {"json": {"image": (pixels / 255).tolist(), "dtype": "float", "samples": 30, "seed": 3}},
    }


def test_every_format_of_a_request_gives_the_same_numbers(client, pixels):
    answers = {}
    for way, request in ways_to_send(pixels).items():
        response = client.post("/predict", **request)
        assert response.status_code == 200, (way, response.text)
        answers[way] = {name: value for name, value in response.json().items() if name != "preprocessing"}
    assert answers["form"]["samples"] == 30
    assert all(answer == answers["form"] for answer in answers.values())


def test_lists_may_have_the_most_probable_classes_only(client, served, pixels):
    classes = served.artifact.classes
    params = {"samples": 20, "return_samples": True}
    whole = post(client, pixels, **params)
    assert "classes" not in whole
    assert post(client, pixels, **params, top_k=len(classes)) == whole
    short = post(client, pixels, **params, top_k=3)
    order = np.argsort(-np.array(whole["probabilities"]), kind="stable")[:3]
    assert short["classes"] == [classes[index] for index in order]
    assert short["classes"][0] == short["label"]
    assert short["probabilities"] == [whole["probabilities"][index] for index in order]
    for name in ("variance", "standard_error"):
        assert short["uncertainty"][name] == [whole["uncertainty"][name][index] for index in order]
    assert short["sample_probabilities"] == np.array(whole["sample_probabilities"])[:, order].tolist()
    for name in ("class_index", "confidence", "prediction_set", "preprocessing"):
        assert short[name] == whole[name]
    assert client.post("/predict", content=png(pixels), params={"top_k": 0}).status_code == 422


def test_predictions_return_pixels_on_request(client, pixels):
    for path, found in (("/predict", lambda body: body), ("/predict_batch", lambda body: body["results"][0])):
        answer = client.post(path, content=png(pixels), params={"return_pixels": True, "invert": "no"}).json()
        assert found(answer)["preprocessing"]["pixels"] == pixels.tolist()
        assert "pixels" not in found(client.post(path, content=png(pixels)).json())["preprocessing"]
    inverted = client.post("/predict", content=png(pixels), params={"return_pixels": True, "invert": "yes"}).json()
    assert inverted["preprocessing"]["pixels"] == (255 - pixels).tolist()


def test_returned_pixels_are_answered_as_their_photograph(client):
    noise = np.random.default_rng(5).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    photograph = encoded(Image.fromarray(noise), "JPEG")
    seen = client.post("/predict", content=photograph, params={"return_pixels": True}).json()
    again = client.post("/predict", json={"image": seen["preprocessing"]["pixels"], "invert": "no"}).json()
    assert again["probabilities"] == seen["probabilities"]
    assert again["preprocessing"]["image_hash"] == seen["preprocessing"]["image_hash"]
