"""Answers of /predict against the library, for real images."""

import base64
import re

import httpx
import numpy as np
import pytest
from files import encoded, png
from PIL import Image
from server import ROOT
from sklearn.datasets import load_sample_images

from model import MomentPropagation, MonteCarloDropout, load_artifact, summarize
from model.calibration import COVERAGES, RISKS, find_calibration
from model.network.chain import LiveChain

ACCURACY_IMAGES = 300


@pytest.fixture(scope="module")
def boot() -> np.ndarray:
    """The first test image of Fashion-MNIST, which ships with the docs."""
    return np.asarray(Image.open(ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png"))


@pytest.fixture(scope="module")
def shirt() -> np.ndarray:
    """A test image that leaves the network in doubt."""
    return np.asarray(Image.open(ROOT / "docs" / "images" / "fashion-mnist-t-shirt.png"))


def post(client: httpx.Client, pixels: np.ndarray, **params: object) -> dict:
    response = client.post("/predict", files={"image": png(pixels)}, params=params)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("params", [{}, {"samples": 100}])
def test_real_images_are_classified_in_both_modes(client, fashion, params):
    images, labels = fashion.test.images_B[:ACCURACY_IMAGES].numpy(), fashion.test.labels_B[:ACCURACY_IMAGES].tolist()
    answers = [post(client, pixels, **params) for pixels in images]
    accuracy = np.mean([answer["class_index"] == label for answer, label in zip(answers, labels, strict=True)])
    assert accuracy >= 0.87
    for answer in answers:
        assert answer["confidence"] == answer["probabilities"][answer["class_index"]] == max(answer["probabilities"])
        assert sum(answer["probabilities"]) == pytest.approx(1)
        assert answer["warnings"] == [] or "background" in answer["warnings"][0]
        if params:
            spread = answer["uncertainty"]
            values = np.hstack([np.ravel(value) for value in spread.values()])
            assert np.isfinite(values).all()
            assert (values >= 0).all()
            assert len(spread["variance"]) == len(spread["standard_error"]) == 10
        else:
            assert answer["uncertainty"] is None


def test_an_answer_is_what_the_library_computes(client, fashion):
    artifact = load_artifact()
    mc = MonteCarloDropout(artifact.network)
    images = fashion.test.images_B[:10]
    inputs = fashion.test[np.arange(10)].inputs_B
    expected = summarize(mc.sample(inputs, samples=30, seed=5))
    probs_BC = mc.predict(inputs)
    for b, pixels in enumerate(images.numpy()):
        answer = post(client, pixels, samples=30, seed=5, calibrated=False)
        assert answer["probabilities"] == pytest.approx(expected.mean[b].tolist(), rel=1e-5, abs=1e-9)
        for name, value in answer["uncertainty"].items():
            assert value == pytest.approx(getattr(expected, name)[b].tolist(), rel=1e-4, abs=1e-7)
        raw = post(client, pixels, calibrated=False)
        assert raw["probabilities"] == pytest.approx(probs_BC[b].tolist(), rel=1e-5, abs=1e-9)
        assert (answer["calibrated"], raw["calibrated"]) == (False, False)
        assert answer["label"] == artifact.classes[answer["class_index"]]


def test_probabilities_sets_and_abstention_follow_the_calibration(client, fashion):
    artifact = load_artifact()
    inputs = fashion.test[np.arange(0, 200, 5)].inputs_B
    expected_BC = summarize(MonteCarloDropout(artifact.network).sample(inputs, samples=100)).mean.numpy()
    calibration = find_calibration(artifact.calibrations, "masks", 100)
    probs_BC = calibration.probabilities(expected_BC)
    scores_B = artifact.novelty.score(LiveChain(artifact.network), inputs.numpy())
    reasons = []
    for probs_C, score, pixels in zip(probs_BC, scores_B, fashion.test.images_B[:200:5].numpy(), strict=True):
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


def test_coverage_enlarges_sets_and_risk_allows_more_answers(client, fashion):
    images = fashion.test.images_B[:40].numpy()
    for method in ("lac", "aps"):
        sizes = [
            sum(len(post(client, pixels, coverage=coverage, set_method=method)["prediction_set"]) for pixels in images)
            for coverage in COVERAGES
        ]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]
    answered = [sum(not post(client, pixels, max_risk=risk)["abstain"] for pixels in images) for risk in RISKS]
    assert answered == sorted(answered)
    assert answered[0] < answered[-1]


def test_the_same_image_and_seed_have_the_same_adaptive_set(client, fashion):
    for pixels in fashion.test.images_B[:20].numpy():
        one, other = (post(client, pixels, set_method="aps", seed=3) for _ in range(2))
        assert one["prediction_set"] == other["prediction_set"]


def strange_images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(91)
    rows, columns = np.mgrid[:300, :400]
    haze = np.stack([columns / 4 + 80, rows / 3 + 70, np.full(rows.shape, 120)], axis=-1) + rng.normal(
        0, 9, (300, 400, 3)
    )
    blobs = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize(
        (400, 300), Image.Resampling.BICUBIC
    )
    photographs = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    return {
        **photographs, "black": np.zeros((28, 28), np.uint8), "grey": np.full((28, 28), 60, np.uint8),
        "white": np.full((90, 120, 3), 255, np.uint8), "noise": rng.integers(0, 256, (28, 28)).astype(np.uint8),
        "coloured noise": rng.integers(0, 256, (300, 300, 3)).astype(np.uint8),
        "haze": haze.clip(0, 255).astype(np.uint8), "blobs": np.asarray(blobs),
    }  # fmt: skip


@pytest.mark.parametrize("params", [{}, {"samples": 100}, {"method": "moments"}])
@pytest.mark.parametrize("name", strange_images())
def test_out_of_distribution_images_are_not_answered(client, name, params):
    answer = post(client, strange_images()[name], **params)
    assert answer["abstain"], answer


def test_most_digits_are_not_answered(client, mnist):
    """Some look like clothing: the model card counts all ten thousand."""
    abstained = [post(client, pixels, samples=100)["abstain"] for pixels in mnist[:200]]
    assert np.mean(abstained) >= 0.75


def test_few_masks_are_answered_as_not_calibrated(client, boot):
    answer = post(client, boot, samples=5)
    assert answer["warnings"] == ["5 masks are not calibrated, 10 and more are: probabilities are raw, without a set"]
    assert (answer["calibrated"], answer["calibration"], answer["prediction_set"]) == (False, None, None)
    assert answer["abstain_threshold"] is None


def test_answers_contain_mode_samples_and_seed(client, boot):
    assert {name: post(client, boot)[name] for name in ("mode", "samples", "seed")} == {
        "mode": "eval", "samples": 0, "seed": 0,
    }  # fmt: skip
    answer = post(client, boot, samples=20, seed=9)
    assert (answer["mode"], answer["samples"], answer["seed"]) == ("mc", 20, 9)


def test_moments_match_the_library_and_many_masks(client, fashion):
    images = fashion.test.images_B[:10]
    expected = MomentPropagation(load_artifact().network).predict(fashion.test[np.arange(10)].inputs_B)
    for b, pixels in enumerate(images.numpy()):
        answer = post(client, pixels, method="moments", calibrated=False)
        sampled = post(client, pixels, samples=1000, calibrated=False)
        assert (answer["mode"], answer["samples"]) == ("moments", 0)
        assert answer["probabilities"] == pytest.approx(expected.mean[b].tolist(), rel=1e-4, abs=1e-8)
        assert answer["probabilities"] == pytest.approx(sampled["probabilities"], abs=0.01)
        assert answer["uncertainty"].keys() == sampled["uncertainty"].keys()
        assert answer["uncertainty"].pop("standard_error") is None
        for name, value in answer["uncertainty"].items():
            assert value == pytest.approx(getattr(expected, name)[b].tolist(), rel=1e-3, abs=1e-6), name
        assert answer["uncertainty"]["mutual_information"] == pytest.approx(
            sampled["uncertainty"]["mutual_information"], abs=0.05
        )


def test_automatic_samples_answer_as_that_number_does(client, fashion):
    used = set()
    for pixels in fashion.test.images_B[:30].numpy():
        answer = post(client, pixels, samples="auto", tolerance=0.01, max_samples=200)
        assert answer == post(client, pixels, samples=answer["samples"]) | {"warnings": answer["warnings"]}
        error = answer["uncertainty"]["standard_error"][answer["class_index"]]
        assert (error <= 0.01) == (answer["warnings"] == [])
        if error > 0.01:
            assert answer["samples"] == 200
            assert re.fullmatch(r"the standard error is 0\.0\d+ after 200 samples, not 0\.01", answer["warnings"][0])
        used.add(answer["samples"])
    assert min(used) == 20
    assert len(used) > 1


def test_seeds_change_answers_and_more_samples_reduce_the_error(client, shirt):
    assert post(client, shirt, samples=50, seed=1)["probabilities"] != post(client, shirt, samples=50)["probabilities"]
    few, many = (max(post(client, shirt, samples=n)["uncertainty"]["standard_error"]) for n in (10, 1000))
    assert many < few / 3


def ways_to_send(boot: np.ndarray) -> dict[str, dict]:
    """The same 28 x 28 image in every way that keeps its pixels."""
    rows, data = boot.tolist(), png(boot)
    text = base64.b64encode(data).decode()
    lossless = encoded(Image.fromarray(boot), "WEBP", lossless=True)
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
        "flat": {"json": {"image": boot.ravel().tolist(), "samples": 30, "seed": 3}},
        "floats": {"json": {"image": (boot / 255).tolist(), "dtype": "float", "samples": 30, "seed": 3}},
    }


def test_every_format_of_a_request_gives_the_same_numbers(client, boot):
    answers = {}
    for way, request in ways_to_send(boot).items():
        response = client.post("/predict", **request)
        assert response.status_code == 200, (way, response.text)
        answers[way] = {name: value for name, value in response.json().items() if name != "preprocessing"}
    assert answers["form"]["label"] == "ankle boot"
    assert all(answer == answers["form"] for answer in answers.values())


def test_a_dark_on_light_photograph_gets_the_right_label(client, boot):
    paper = Image.new("RGB", (300, 400), "white")
    paper.paste(Image.fromarray(255 - boot).resize((300, 300), Image.Resampling.BICUBIC), (0, 50))
    photograph = {"image": encoded(paper, "JPEG")}
    response = client.post("/predict", files=photograph, params={"samples": 100})
    answer = response.json()
    assert answer["label"] == "ankle boot"
    assert answer["preprocessing"] == {
        "source": "JPEG",
        "width": 300,
        "height": 400,
        "inverted": True,
        "steps": ["greyscale", "inverted", "trimmed", "padded", "resized"],
        "image_hash": answer["preprocessing"]["image_hash"],
    }
    refused = client.post("/predict", files=photograph, params={"invert": "no"}).json()
    assert not refused["preprocessing"]["inverted"]
