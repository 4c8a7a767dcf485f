"""Shifted images with labels: rotated, and corrupted in eight ways at five severities.

Severities follow Hendrycks & Dietterich (2019, arXiv:1903.12261); the corruptions are specific to this project, for
images of 28 x 28 pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from training.data import Images
from training.vision import functional

ANGLES = tuple(range(0, 181, 15))  # degrees
SEVERITIES = (1, 2, 3, 4, 5)

_SEED = 0
_BILINEAR = functional.InterpolationMode.BILINEAR
_KERNEL = 13  # pixels, three standard deviations of the strongest blur to either side
_DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))

Corruption = Callable[[Tensor, float, np.random.Generator], Tensor]


def rotate(images: Images, degrees: float) -> Images:
    """Rotate images counter-clockwise about their center; uncovered pixels are black."""
    pixels_B1HW = functional.rotate(images.images_B.unsqueeze(1), degrees, interpolation=_BILINEAR)
    return Images(pixels_B1HW.squeeze(1), images.labels_B)


def corrupt_images(images: Images, name: str, severity: int) -> Images:
    """Apply a corruption of `CORRUPTIONS` at a severity of `SEVERITIES`; the result is deterministic."""
    corruption, strengths = CORRUPTIONS[name]
    rng = np.random.default_rng([_SEED, severity])
    pixels_B1HW = corruption(images.images_B.unsqueeze(1), strengths[severity - 1], rng)
    return Images(pixels_B1HW.squeeze(1), images.labels_B)


def _noise(pixels_B1HW: Tensor, deviation: float, rng: np.random.Generator) -> Tensor:
    noise_B1HW = torch.from_numpy(rng.standard_normal(pixels_B1HW.shape, dtype=np.float32))
    return (pixels_B1HW + 255 * deviation * noise_B1HW).round().clamp(0, 255).to(torch.uint8)


def _blur(pixels_B1HW: Tensor, deviation: float, _: np.random.Generator) -> Tensor:
    return functional.gaussian_blur(pixels_B1HW, [_KERNEL, _KERNEL], [deviation, deviation])


def _contrast(pixels_B1HW: Tensor, factor: float, _: np.random.Generator) -> Tensor:
    return functional.adjust_contrast(pixels_B1HW, factor)


def _shear(pixels_B1HW: Tensor, degrees: float, _: np.random.Generator) -> Tensor:
    return _affine_by_group(pixels_B1HW, [{"shear": [degrees, 0.0]}, {"shear": [-degrees, 0.0]}])


def _scale(pixels_B1HW: Tensor, factor: float, _: np.random.Generator) -> Tensor:
    return _affine_by_group(pixels_B1HW, [{"scale": factor}])


def _shift(pixels_B1HW: Tensor, distance: float, _: np.random.Generator) -> Tensor:
    return _affine_by_group(pixels_B1HW, [{"translate": [x * distance, y * distance]} for x, y in _DIRECTIONS])


def _affine_by_group(pixels_B1HW: Tensor, transforms: Sequence[Mapping[str, object]]) -> Tensor:
    """Apply the affine transforms to the images in turn."""
    identity = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0]}
    result_B1HW = torch.empty_like(pixels_B1HW)
    for group, parameters in enumerate(transforms):
        members = slice(group, None, len(transforms))
        result_B1HW[members] = functional.affine(
            pixels_B1HW[members], **(identity | dict(parameters)), interpolation=_BILINEAR
        )
    return result_B1HW


def _occlusion(pixels_B1HW: Tensor, side: float, rng: np.random.Generator) -> Tensor:
    size = pixels_B1HW.shape[-1]
    first_2B = torch.from_numpy(rng.integers(0, size - int(side), (2, len(pixels_B1HW)), endpoint=True))
    place_2BS = torch.arange(size) - first_2B[:, :, None]
    row_BH, column_BW = (place_2BS >= 0) & (place_2BS < side)
    return pixels_B1HW.masked_fill((row_BH[:, :, None] & column_BW[:, None, :]).unsqueeze(1), 0)


def _inversion(pixels_B1HW: Tensor, threshold: float, _: np.random.Generator) -> Tensor:
    return functional.solarize(pixels_B1HW, 255 * threshold)


# Each corruption with its strength at each severity.
CORRUPTIONS: Mapping[str, tuple[Corruption, tuple[float, ...]]] = {
    "noise": (_noise, (0.05, 0.1, 0.15, 0.2, 0.3)),  # standard deviation of the noise added to pixels in [0, 1]
    "blur": (_blur, (0.5, 0.75, 1.0, 1.5, 2.0)),  # standard deviation of a normal distribution, in pixels
    "contrast": (_contrast, (0.8, 0.6, 0.4, 0.25, 0.1)),  # factor of the distance from the image's mean
    "shear": (_shear, (5, 10, 15, 20, 30)),  # degrees, to either side
    "scale": (_scale, (0.9, 0.8, 0.7, 0.6, 0.5)),  # factor
    "shift": (_shift, (1, 2, 3, 4, 5)),  # pixels, into each of four directions
    "occlusion": (_occlusion, (6, 8, 10, 12, 14)),  # side of a black square at a random position, in pixels
    "inversion": (_inversion, (0.8, 0.6, 0.4, 0.2, 0.0)),  # pixels from this value are inverted
}


def shifted_images(images: Images) -> Iterator[tuple[str, str, Images]]:
    """Yield the name of a shift ("rotation" or a corruption), its degree, and the shifted images."""
    for degrees in ANGLES:
        yield "rotation", str(degrees), rotate(images, degrees)
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            yield name, str(severity), corrupt_images(images, name, severity)
