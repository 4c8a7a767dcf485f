"""Predictions of images for calibration, which an interrupted run keeps."""

import numpy as np
import pytest
import rgb
from files import encoded
from PIL import Image

from training.adopt.inputs import input_spec, prepare_image
from training.adopt.scores import SEED, measure_images
from training.adopt.stored_images import ImageFile
from training.estimates import Estimators


@pytest.fixture(scope="module")
def engine():
    return rgb.compiled().graph()


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(60)
    made = [ImageFile(tmp_path / f"{index}.png") for index in range(120)]
    for image in made:
        image.path.write_bytes(encoded(Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))))
    return made


def test_estimates_are_those_of_the_engine_and_kept(engine, images, tmp_path):
    read = []

    def prepare(image):
        read.append(image)
        return rgb.SPEC.normalize(prepare_image(image, rgb.SPEC)[None])

    def measure(folder="kept"):
        estimators = Estimators(engine, None)
        return measure_images(estimators, images, prepare, samples=(10, 30), folder=tmp_path / folder, track=iter)

    estimates, features_NF = measure()
    images_B = np.concatenate([prepare(image) for image in images])
    assert features_NF.shape == (120, 160)
    assert np.allclose(estimates["eval", 0]["probs_BC"], engine.predict(images_B), atol=1e-6)
    for count in (10, 30):
        expected = engine.estimate(images_B, count, SEED)
        assert np.allclose(estimates["masks", count]["probs_BC"], expected.mean, atol=1e-6)
        assert np.allclose(estimates["masks", count]["information_B"], expected.mutual_information, atol=1e-6)
    read.clear()
    again, _ = measure()
    assert not read
    assert all(np.array_equal(again[key]["probs_BC"], rows["probs_BC"]) for key, rows in estimates.items())
    images[70].path.write_bytes(images[0].read() + b" ")  # one group of fifty is computed again
    changed, _ = measure()
    assert read == images[50:100]
    assert np.allclose(changed["eval", 0]["probs_BC"][70], estimates["eval", 0]["probs_BC"][0], atol=1e-6)
    read.clear()
    measure("another network")
    assert read == images


OPTIONS = {"resize": "crop", "crop_fraction": 0.875, "polarity": "any"}


def test_options_make_a_specification():
    found = input_spec("224", 3, "imagenet", "", "", **OPTIONS)
    assert (found.shape, found.mean, found.crop_fraction) == ((3, 224, 224), (0.485, 0.456, 0.406), 0.875)
    found = input_spec("20x24", 1, "minus1to1", "", "", **OPTIONS | {"resize": "fit"})
    assert (found.shape, found.mean, found.std, found.crop_fraction) == ((1, 20, 24), (0.5,), (0.5,), 1.0)
    assert input_spec("8", 3, "none", "0.1,0.2,0.3", "1,2,3", **OPTIONS).std == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("large", 3, "none", "", ""), "--size must be N or HEIGHTxWIDTH, got large"),
        (("1x2x3", 3, "none", "", ""), "--size must be N or HEIGHTxWIDTH"),
        (("224", 1, "imagenet", "", ""), "--normalize imagenet is for 3 channels, not for 1"),
        (("224", 3, "none", "0.5", ""), "--mean and --std belong together"),
        (("224", 3, "none", "a,b", "1"), "--mean must be numbers, separated by commas, got a,b"),
        (("224", 3, "none", "0.5,0.5", "1,1"), r"mean must have 3 finite value\(s\)"),
        (("0", 3, "none", "", ""), "height of an image must be"),
    ],
)
def test_invalid_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        input_spec(*arguments, **OPTIONS)
