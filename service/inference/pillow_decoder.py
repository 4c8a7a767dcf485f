"""Decodes image files to grey or RGB pixels with Pillow."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from service.inference.errors import ImageError
from service.inference.formats import ImageStructure
from service.inference.pixels import Pixels

_BAND_PIXELS = 2**20  # converted to grey at once, which bounds the memory needed
_WHITE = np.uint8(255)
_GREY_16_BITS = "I;16"  # Pillow's mode of grey with 16 bits
_LOW_BYTES = "RGB;16L"  # Pillow's raw mode that reads the second byte of a sample

_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}

Image.MAX_IMAGE_PIXELS = None  # `Upload.of` has checked our own limit


def decode_file(file: ImageStructure, channels: int = 1) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a file to grey or RGB, turned upright by its EXIF orientation (Exif 2.3, tag 0x0112).

    Args:
        file: the file.
        channels: 1 for grey, 3 for RGB.

    Returns:
        Pixels, (H, W) or (H, W, 3), and the names of the processing steps, in order.

    Raises:
        Exception: any exception that Pillow raises on broken data.
    """
    pixels, steps = _decode(file, channels)
    return np.ascontiguousarray(_TURNS[file.orientation](pixels)), steps


def _decode(file: ImageStructure, channels: int) -> tuple[Pixels, tuple[str, ...]]:
    """Convert in bands of rows, which need little memory in addition to the decoded image and the result."""
    convert = _grey if channels == 1 else _rgb
    images = [_load(file)]
    if file.transparent is not None and images[0].mode == "RGB" and file.bits == 16:
        images.append(_load(file, rawmode=_LOW_BYTES))  # Pillow reads only one of the two bytes of a sample
    pixels = np.empty((file.height, file.width) + (() if channels == 1 else (channels,)), np.uint8)
    is_composited = False
    for rows in _bands(file.height, file.width):
        bands = [image.crop((0, rows.start, file.width, rows.stop)) for image in images]
        pixels[rows], clear = _convert_band(bands, file.transparent, convert)
        is_composited |= clear
    is_16_bits = images[0].mode == _GREY_16_BITS
    has_transparency = file.transparent is not None or images[0].has_transparency_data
    steps = {
        "reduced to 8 bits": is_16_bits,
        "composited on white": is_composited,
        "greyscale": channels == 1 and (has_transparency or not (is_16_bits or images[0].mode == "L")),
    }
    return pixels, tuple(name for name, is_done in steps.items() if is_done)


def _load(file: ImageStructure, *, rawmode: str | None = None) -> Image.Image:
    """Decode a file with Pillow; a raw mode changes how its bytes are interpreted."""
    image = Image.open(io.BytesIO(file.data), formats=[file.format])
    if image.size != (file.width, file.height):
        raise ImageError("the image is broken: its size differs from the size in its header")
    if rawmode is not None and isinstance(image, ImageFile.ImageFile):
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
    image.load()
    return image


def _bands(height: int, width: int) -> Iterator[slice]:
    step = max(_BAND_PIXELS // width, 1)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _convert_band(
    bands: Sequence[Image.Image], transparent: tuple[int, ...] | None, convert: Callable[[Image.Image], Pixels]
) -> tuple[Pixels, bool]:
    """Composite a band on white and convert it; return its pixels, and whether any pixel is transparent."""
    band = bands[0]
    if transparent is not None:
        is_clear, pixels = _is_clear(bands, transparent), convert(band)
        return np.where(is_clear if pixels.ndim == 2 else is_clear[..., None], _WHITE, pixels), bool(is_clear.any())
    if not band.has_transparency_data:
        return convert(band), False
    colour = band.convert("RGBA")
    is_opaque = colour.getchannel("A").getextrema() == (255, 255)
    background = Image.new("RGBA", colour.size, "white")
    return convert(Image.alpha_composite(background, colour).convert("RGB")), not is_opaque


def _is_clear(bands: Sequence[Image.Image], transparent: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mask of the pixels with the transparent colour; a second band has the low bytes of the samples."""
    samples = np.asarray(bands[0].convert("L") if bands[0].mode == "1" else bands[0]).astype(np.uint16)
    for low in bands[1:]:
        samples = samples << 8 | np.asarray(low)
    is_equal = samples == np.array(transparent, np.uint16)
    return np.asarray(is_equal.all(axis=2) if is_equal.ndim == 3 else is_equal)


def _grey(band: Image.Image) -> Pixels:
    if band.mode == _GREY_16_BITS:
        return (np.asarray(band) >> 8).astype(np.uint8)
    return np.asarray(band if band.mode == "L" else band.convert("L"))


def _rgb(band: Image.Image) -> Pixels:
    if band.mode == _GREY_16_BITS:
        return np.repeat(_grey(band)[..., None], 3, axis=2)
    return np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
