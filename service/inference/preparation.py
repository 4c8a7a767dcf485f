"""Prepares images of any size for the network, as its input specification says."""

import itertools
import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from model.input_spec import FASHION_MNIST, InputSpec
from service.inference.errors import ImageError
from service.inference.general_decoder import Decoded
from service.inference.pixels import Pixels
from service.inference.resizing import resize

_MARGIN_TOLERANCE = 13  # 5 % of full scale, the margin rule of Fashion-MNIST's own preparation (arXiv:1708.07747, 2)
_LIGHT = 127.5  # mean brightness above which a border is light
_UNSURE = (96, 160)  # range of mean brightness in which a border may be dark or light
_BUSY_BORDER = 0.5  # fraction of border pixels that differ from their median; 21 of the 70,000 images have more

_SIDE = FASHION_MNIST.height  # pixels; "trim" makes images of this size only
_BAND_PIXELS = 2**20  # processed at once, which bounds the memory needed
_UNIT = 2**22  # a weight of 1 in Pillow's resampling

_BLANK = "the image is blank"
_WARNINGS = (
    "the border is neither dark nor light: set invert=yes or invert=no",
    "the background is not plain: Fashion-MNIST shows one item of clothing on a plain background",
    _BLANK,
)


class Invert(StrEnum):
    """Whether to turn dark-on-light into light-on-dark: `auto` decides by the brightness of the border."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


class Input(NamedTuple):
    """The network's input, and how it was made.

    Attributes:
        pixels: uint8, (H, W) or (H, W, 3).
        source: format of the source: "PNG", "JPEG", "WEBP" or "array".
        size: width and height of the source.
        steps: names of the processing steps, in order.
        warnings: possible reasons for a worse prediction.
    """

    pixels: Pixels
    source: str
    size: tuple[int, int]
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def inverted(self) -> bool:
        """Whether dark and light were swapped."""
        return "inverted" in self.steps

    @property
    def image_hash(self) -> str:
        """Hash of the pixels, 16 hexadecimal digits."""
        return blake2b(self.pixels.tobytes(), digest_size=8).hexdigest()


def prepare_all(
    decoded: Iterable[Decoded | ImageError], *, invert: Invert = Invert.AUTO, spec: InputSpec
) -> list[Input | ImageError]:
    """Prepare images for the network. The other images of the batch do not affect an image.

    Images of the network's size are not trimmed, cut or resized. Others are, see `InputSpec.resize`.

    Args:
        decoded: decoded images, or the error of an invalid one, which stays in its place. A large image is prepared
            before the next one is taken from the iterable.
        invert: whether to swap dark and light.
        spec: what the network takes.
    """
    if spec.resize != "trim":
        return [prepare(one, invert, spec) if isinstance(one, Decoded) else one for one in decoded]
    return _prepare_trimmed(decoded, invert)


def prepare(image: Decoded, invert: Invert, spec: InputSpec) -> Input:
    """Prepare an image by "crop", "fit" or "stretch"."""
    pixels, steps = image.pixels, image.steps
    height, width = pixels.shape[:2]
    if invert is Invert.YES or (invert is Invert.AUTO and spec.polarity == "light-on-dark" and _is_light(pixels)):
        pixels, steps = pixels ^ np.uint8(255), (*steps, "inverted")
    if pixels.shape != spec.pixel_shape:
        pixels, resizing = resize(pixels, spec)
        steps += resizing
    is_blank = int(pixels.max()) - int(pixels.min()) <= _MARGIN_TOLERANCE
    warnings = (*image.warnings, *itertools.compress((_BLANK,), (is_blank,)))
    return Input(pixels, image.source, (width, height), steps, warnings)


def _is_light(pixels: Pixels) -> bool:
    """Whether the border is light."""
    sides = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return float(np.concatenate(sides).mean()) > _LIGHT


def _prepare_trimmed(decoded: Iterable[Decoded | ImageError], invert: Invert) -> list[Input | ImageError]:
    """Prepare grey images like Fashion-MNIST's own: square, light on dark.

    Plain margins are trimmed, the longer side is resized to _SIDE, and the shorter side is padded on both sides.
    """
    results: list[Decoded | Input | ImageError] = []
    for one in decoded:
        if isinstance(one, Decoded) and one.pixels.shape != (_SIDE, _SIDE):
            results.extend(_prepare_same_size([one], invert))
        else:
            results.append(one)
    together = iter(_prepare_same_size([one for one in results if isinstance(one, Decoded)], invert))
    return [next(together) if isinstance(one, Decoded) else one for one in results]


def _prepare_same_size(images: Sequence[Decoded], invert: Invert) -> list[Input]:
    """Prepare images of the same size together."""
    if not images:
        return []
    height, width = images[0].pixels.shape
    pixels_BHW = images[0].pixels[None] if len(images) == 1 else np.stack([image.pixels for image in images])
    sides = (pixels_BHW[:, 0], pixels_BHW[:, -1], pixels_BHW[:, :, 0], pixels_BHW[:, :, -1])
    border_BK = np.concatenate(sides, axis=1)
    count = border_BK.shape[1]
    brightness = [total / count for total in np.add.reduce(border_BK, axis=1).tolist()]
    inverted = [invert is Invert.YES or (invert is Invert.AUTO and one > _LIGHT) for one in brightness]
    if any(inverted):
        flips_B = np.array(inverted) * np.uint8(255)
        pixels_BHW = pixels_BHW ^ flips_B[:, None, None]  # x ^ 255 is 255 - x
        border_BK ^= flips_B[:, None]
    border_BK.sort(axis=1)
    backgrounds_B1 = border_BK[:, count // 2, None]
    others = np.add.reduce(_stands_out(border_BK, backgrounds_B1), axis=1, dtype=np.intp).tolist()
    flat_BP = pixels_BHW.reshape(len(images), height * width)
    ranges = (np.maximum.reduce(flat_BP, axis=1) - np.minimum.reduce(flat_BP, axis=1)).tolist()
    backgrounds = backgrounds_B1.ravel().tolist()
    prepared = []
    for index, image in enumerate(images):
        pixels, steps = pixels_BHW[index], image.steps
        if inverted[index]:
            steps += ("inverted",)
        if (height, width) != (_SIDE, _SIDE):
            pixels, fitting = _fit(pixels, backgrounds[index])
            steps += fitting
        warned = (
            invert is Invert.AUTO and _UNSURE[0] <= brightness[index] < _UNSURE[1],
            others[index] > _BUSY_BORDER * count,
            ranges[index] <= _MARGIN_TOLERANCE,
        )
        warnings = (*image.warnings, *itertools.compress(_WARNINGS, warned))
        prepared.append(Input(pixels, image.source, (width, height), steps, warnings))
    return prepared


def _fit(grey: Pixels, background: int) -> tuple[Pixels, tuple[str, ...]]:
    """Trim plain margins, pad to a square, and resize to _SIDE x _SIDE.

    The padding is applied after a first resize, so that the memory is bounded by the image's own pixels.
    """
    trimmed = _without_margins(grey, background)
    height, width = trimmed.shape
    steps = (trimmed.shape != grey.shape, height != width, True)
    if width < height:
        columns = _fit_padded_rows(trimmed, background)
    else:
        gap = width - height
        fitted = np.asarray(Image.fromarray(trimmed).resize((_SIDE, height), Image.Resampling.LANCZOS))
        columns = np.pad(fitted, [(gap // 2, math.ceil(gap / 2)), (0, 0)], constant_values=background)
    pixels = np.asarray(Image.fromarray(columns).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    return pixels, tuple(itertools.compress(("trimmed", "padded", "resized"), steps))


def _fit_padded_rows(grey: Pixels, background: int) -> Pixels:
    """Resize the rows of (H, W), W < H, to (H, _SIDE), with Pillow's result for rows padded to a length of H.

    Pillow multiplies pixels by integer weights of 22 bits, sums, rounds and clips. These sums are exact in float64.
    """
    height, width = grey.shape
    weights_JW, padding_J = _padded_weights(height, width)
    fitted = np.empty((height, _SIDE), np.uint8)
    step = max(_BAND_PIXELS // max(width, _SIDE), 1)
    for top in range(0, height, step):
        sums = grey[top : top + step].astype(np.float64) @ weights_JW.T + padding_J * background
        fitted[top : top + step] = np.clip(np.floor(sums / _UNIT + 0.5), 0, 255)
    return fitted


def _padded_weights(side: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Resampling weights of a row of `width` pixels centred in `side` pixels, (_SIDE, W), and of its padding, (_SIDE,).

    The Lanczos kernel, sinc(x) sinc(x / 3) for |x| < 3, is stretched to span 6 pixels of the result.
    """
    scale = side / _SIDE
    stretch = max(scale, 1.0)
    left = (side - width) // 2
    weights_JW, padding_J = np.zeros((_SIDE, width)), np.zeros(_SIDE)
    for place in range(_SIDE):
        centre = (place + 0.5) * scale
        first = max(int(centre - 3 * stretch + 0.5), 0)
        last = min(int(centre + 3 * stretch + 0.5), side)
        distances = (np.arange(first, last) + 0.5 - centre) / stretch
        kernel = np.where(np.abs(distances) < 3, np.sinc(distances) * np.sinc(distances / 3), 0)
        weights = kernel / kernel.sum() * _UNIT
        weights = np.trunc(weights + np.copysign(0.5, weights))
        start, stop = max(first, left), min(last, left + width)
        if start < stop:
            weights_JW[place, start - left : stop - left] = weights[start - first : stop - first]
        padding_J[place] = weights.sum() - weights_JW[place].sum()
    return weights_JW, padding_J


def _stands_out(grey: Pixels, background: Pixels | int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    lowest = np.maximum(np.asarray(background, np.int16) - _MARGIN_TOLERANCE, 0).astype(np.uint8)
    highest = np.minimum(np.asarray(background, np.int16) + _MARGIN_TOLERANCE, 255).astype(np.uint8)
    return (grey < lowest) | (grey > highest)


def _without_margins(grey: Pixels, background: int) -> Pixels:
    stands_out = _stands_out(grey, background)
    rows, columns = np.flatnonzero(stands_out.any(axis=1)), np.flatnonzero(stands_out.any(axis=0))
    if not len(rows):
        return grey
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
