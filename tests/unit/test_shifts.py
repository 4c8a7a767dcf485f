import numpy as np
import pytest
import torch
from scipy import ndimage

from training.data import FashionMNIST, Images
from training.shifts import ANGLES, CORRUPTIONS, SEVERITIES, corrupt_images, rotate, shifted_images


@pytest.fixture(scope="module")
def some(fashion: FashionMNIST) -> Images:
    return fashion.test[:200]


def pixels(images: Images) -> np.ndarray:
    return images.images_B.numpy().astype(float)


def test_turning_by_right_angles_moves_pixels_only(some):
    for quarters in range(3):
        found = rotate(some, 90 * quarters)
        assert np.array_equal(pixels(found), np.rot90(pixels(some), quarters, axes=(1, 2)))
        assert torch.equal(found.labels_B, some.labels_B)


def test_turning_is_that_of_another_library(some):
    for angle in (15, 105):
        expected = ndimage.rotate(pixels(some), angle, axes=(1, 2), reshape=False, order=1)
        inner = (slice(None), slice(6, 22), slice(6, 22))  # at the border, what is outside counts otherwise
        assert np.abs(pixels(rotate(some, angle)) - expected)[inner].max() <= 1.5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severe_is_farther_off_and_always_alike(some, name):
    found = [corrupt_images(some, name, severity) for severity in SEVERITIES]
    off = [np.abs(pixels(one) - pixels(some)).mean() for one in found]
    assert off == sorted(off)
    assert 0 < off[0] < off[-1]
    for severity, one in zip(SEVERITIES, found, strict=True):
        assert one.images_B.dtype == torch.uint8
        assert torch.equal(one.images_B, corrupt_images(some, name, severity).images_B)
        assert torch.equal(one.labels_B, some.labels_B)


def test_noise_has_the_deviation_that_is_said():
    grey = Images(torch.full((500, 28, 28), 128, dtype=torch.uint8), torch.zeros(500).long())
    assert pixels(corrupt_images(grey, "noise", 2)).std() == pytest.approx(25.5, rel=0.01)
    assert pixels(corrupt_images(grey, "noise", 2)).mean() == pytest.approx(128, abs=0.2)


def test_blur_is_that_of_another_library(some):
    expected = ndimage.gaussian_filter(pixels(some), 1.5, axes=(1, 2), mode="mirror", radius=6)
    assert np.abs(pixels(corrupt_images(some, "blur", 4)) - expected).max() <= 1


def test_contrast_is_about_the_mean_of_each_image(some):
    mean_B = pixels(some).mean(axis=(1, 2), keepdims=True)
    assert np.abs(pixels(corrupt_images(some, "contrast", 3)) - (0.4 * pixels(some) + 0.6 * mean_B)).max() <= 1


def mapped(pixels_HW: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Fill each pixel from where the matrix maps it, about the middle, by another library."""
    middle = np.array([13.5, 13.5])
    return ndimage.affine_transform(pixels_HW, matrix, offset=middle - matrix @ middle, order=1)


def test_scaling_is_about_the_middle(some):
    for found, plain in zip(pixels(corrupt_images(some, "scale", 3)), pixels(some), strict=True):
        assert np.abs(found - mapped(plain, np.eye(2) / 0.7))[5:23, 5:23].max() <= 1.5


def test_every_second_image_is_sheared_to_the_other_side(some):
    tangent = np.tan(np.radians(15))
    for b, found in enumerate(pixels(corrupt_images(some, "shear", 3))):
        matrix = np.array([[1, 0], [tangent if b % 2 == 0 else -tangent, 1]])
        assert np.abs(found - mapped(pixels(some)[b], matrix))[4:24, 4:24].max() <= 1.5


def test_each_fourth_image_is_shifted_into_the_same_direction(some):
    found = pixels(corrupt_images(some, "shift", 3))
    for group, (axis, step) in enumerate(((2, 3), (1, 3), (2, -3), (1, -3))):
        expected = ndimage.shift(pixels(some)[group::4], [0, *(step if axis == a else 0 for a in (1, 2))], order=0)
        assert np.array_equal(found[group::4], expected)


def test_a_black_square_is_somewhere_in_each_image():
    white = Images(torch.full((400, 28, 28), 255, dtype=torch.uint8), torch.zeros(400).long())
    hidden_BHW = pixels(corrupt_images(white, "occlusion", 2)) == 0
    assert (hidden_BHW.sum(axis=(1, 2)) == 8 * 8).all()
    assert (hidden_BHW.any(axis=1).sum(axis=1) == 8).all()
    assert (hidden_BHW.any(axis=2).sum(axis=1) == 8).all()
    assert hidden_BHW.any(axis=(0, 1)).all()  # no row and no column is spared
    assert hidden_BHW.any(axis=(0, 2)).all()


def test_strongest_inversion_is_the_negative_and_others_invert_bright_pixels(some):
    assert np.array_equal(pixels(corrupt_images(some, "inversion", 5)), 255 - pixels(some))
    found, bright = pixels(corrupt_images(some, "inversion", 2)), pixels(some) >= 153
    assert np.array_equal(found, np.where(bright, 255 - pixels(some), pixels(some)))


def test_every_shift_is_yielded_once(some):
    found = [(kind, degree) for kind, degree, _ in shifted_images(some[:3])]
    assert len(set(found)) == len(found) == len(ANGLES) + 8 * 5
    assert found[:2] == [("rotation", "0"), ("rotation", "15")]
