"""What the embedded network says of clothing, of other images, and by moments."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from application import client_of
from files import encoded, png
from PIL import Image
from server import ROOT
from sklearn.datasets import load_sample_images

from model import MomentPropagation, load_artifact

ACCURACY_IMAGES = 300


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with client_of() as opened:
        yield opened


@pytest.fixture(scope="module")
def boot() -> np.ndarray:
    """The first test image of Fashion-MNIST, which ships with the docs."""
    return np.asarray(Image.open(ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png"))


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
