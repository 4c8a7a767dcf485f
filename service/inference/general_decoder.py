"""Decodes one upload of any kind to pixels."""

from typing import NamedTuple

import numpy as np

from model.input_spec import InputSpec
from service.inference import pillow_decoder
from service.inference.arrays import pixels_of_array, wrong_shape
from service.inference.errors import as_image_error
from service.inference.formats import read_structure
from service.inference.pixels import Pixels
from service.inference.png import PlainPng
from service.inference.upload import Upload

_PROFILE_WARNING = "the colour profile of the file is ignored: its colours are taken as sRGB"


class Decoded(NamedTuple):
    """A decoded image, of any size, dark on light or light on dark.

    Attributes:
        pixels: (H, W) or (H, W, 3) uint8.
        source: format of the source: "PNG", "JPEG", "WEBP" or "array".
        steps: names of the processing steps, in order.
        warnings: possible reasons for a worse prediction.
    """

    pixels: Pixels
    source: str
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def decode_image(upload: Upload, *, unit_range: bool, spec: InputSpec) -> Decoded:
    """Decode an image; arguments and errors as for `decoding.decode_all`."""
    content = upload.content
    if isinstance(content, list):
        return Decoded(pixels_of_array(content, spec, unit_range=unit_range), "array")
    if isinstance(content, np.ndarray):
        if content.shape != spec.pixel_shape:
            raise wrong_shape(spec)
        return Decoded(content, "array")
    with as_image_error:
        file = read_structure(content.data) if isinstance(content, PlainPng) else content
        pixels, steps = pillow_decoder.decode_file(file, spec.channels)
    frames = () if file.frames == 1 else (f"only the first of {file.frames} frames was used",)
    profile = (_PROFILE_WARNING,) if spec.channels > 1 and file.has_profile else ()
    return Decoded(pixels, file.format, steps, frames + file.warnings + profile)
