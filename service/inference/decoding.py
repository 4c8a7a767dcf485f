"""Uploads -> grey pixels of any size."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from service.inference import pillow_decoder, png
from service.inference.arrays import pixels_of_array
from service.inference.errors import ImageError, as_image_error
from service.inference.formats import read_structure
from service.inference.pixels import Pixels
from service.inference.png import PlainPng
from service.inference.upload import Upload


class Decoded(NamedTuple):
    """A decoded image, of any size, dark on light or light on dark.

    Attributes:
        pixels: (H, W) uint8.
        source: format of the source: "PNG", "JPEG", "WEBP" or "array".
        steps: what was done to it, in order.
        warnings: what may make the prediction worse.
    """

    pixels: Pixels
    source: str
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def decode_all(uploads: Sequence[Upload], *, unit_range: bool) -> Iterator[Decoded | ImageError]:
    """Decode images in their order, or say what is wrong with each.

    An image is decoded when it is asked for, so that no more than one large image is held; files of the plainest kind
    are small, and are decoded together.

    Args:
        uploads: B images.
        unit_range: whether the values of arrays are numbers in [0, 1], instead of integers 0..255.

    Yields:
        `TooManyPixelsError` where there is not enough memory, `DecoderError` where the decoder failed unexpectedly,
        another `ImageError` for broken data.
    """
    plain = iter(png.decode([upload.content for upload in uploads if isinstance(upload.content, PlainPng)]))
    for upload in uploads:
        pixels = next(plain) if isinstance(upload.content, PlainPng) else None
        try:
            yield _decode(upload, unit_range=unit_range) if pixels is None else Decoded(pixels, "PNG")
        except ImageError as error:
            yield error


def _decode(upload: Upload, *, unit_range: bool) -> Decoded:
    content = upload.content
    if isinstance(content, list):
        return Decoded(pixels_of_array(content, unit_range=unit_range), "array")
    if isinstance(content, np.ndarray):
        return Decoded(content, "array")
    with as_image_error:
        file = read_structure(content.data) if isinstance(content, PlainPng) else content
        pixels, steps = pillow_decoder.decode(file)
    frames = () if file.frames == 1 else (f"only the first of {file.frames} frames was used",)
    return Decoded(pixels, file.format, steps, frames + file.warnings)
