"""Brings photographs to the size of the network's input, with Pillow's antialiased bicubic filter."""

import numpy as np
from PIL import Image

from model.input_spec import InputSpec
from service.inference.pixels import Pixels

_FILTER = Image.Resampling.BICUBIC


def resize(pixels: Pixels, spec: InputSpec) -> tuple[Pixels, tuple[str, ...]]:
    """Resize an image, see `InputSpec.resize`.

    Args:
        pixels: (H, W) or (H, W, 3), uint8.
        spec: what the network takes: "crop", "fit" or "stretch".

    Returns:
        Pixels of the network's size, and the names of the steps.
    """
    image = Image.fromarray(pixels)
    size = (spec.width, spec.height)
    if spec.resize == "crop":
        return np.asarray(image.resize(size, _FILTER, box=_crop_box(image.size, spec))), ("cropped", "resized")
    if spec.resize == "stretch":
        return np.asarray(image.resize(size, _FILTER)), ("resized",)
    scale = min(spec.width / image.width, spec.height / image.height)
    fitted = tuple(max(round(side * scale), 1) for side in image.size)
    background = tuple(round(255 * min(max(value, 0), 1)) for value in spec.mean)
    canvas = Image.new(image.mode, size, background if spec.channels > 1 else background[0])
    canvas.paste(
        image.resize((fitted[0], fitted[1]), _FILTER), ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2)
    )
    return np.asarray(canvas), ("padded", "resized") if fitted != size else ("resized",)


def _crop_box(size: tuple[int, int], spec: InputSpec) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the centred part that becomes the input."""
    width, height = size
    scale = max(spec.width / width, spec.height / height) / spec.crop_fraction
    across, down = min(spec.width / scale, width), min(spec.height / scale, height)
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
