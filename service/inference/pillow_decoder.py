"""Image files -> grey pixels, by Pillow."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from service.inference.errors import ImageError
from service.inference.formats import ImageStructure
from service.inference.pixels import Pixels

_BAND_PIXELS = 2**20  # that are turned into grey at once: it bounds what memory that takes
_WHITE = np.uint8(255)
_WIDE_GREY = "I;16"  # Pillow's mode of grey with 16 bits
_LOW_BYTES = "RGB;16L"  # Pillow's raw mode that takes the second byte of a sample

_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}

Image.MAX_IMAGE_PIXELS = None  # `Upload.of` has checked our own limit


def decode_file(file: ImageStructure) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a file to grey, turned upright as its EXIF orientation says (Exif 2.3, tag 0x0112).

    Returns:
        Pixels, (H, W), and what was done to get them, in order.

    Raises:
        Exception: of any kind that Pillow raises on broken data.
    """
    pixels, steps = _grey(file)
    return np.ascontiguousarray(_TURNS[file.orientation](pixels)), steps


def _grey(file: ImageStructure) -> tuple[Pixels, tuple[str, ...]]:
    """Work in bands of rows: apart from the decoded image and its grey pixels, little is held at once."""
    images = [_load(file)]
    if file.transparent is not None and images[0].mode == "RGB" and file.bits == 16:
        images.append(_load(file, rawmode=_LOW_BYTES))  # Pillow reads one byte of the two of a sample
    pixels = np.empty((file.height, file.width), np.uint8)
    is_composited = False
    for rows in _bands(file.height, file.width):
        bands = [image.crop((0, rows.start, file.width, rows.stop)) for image in images]
        pixels[rows], clear = _grey_band(bands, file.transparent)
        is_composited |= clear
    is_wide = images[0].mode == _WIDE_GREY
    has_transparency = file.transparent is not None or images[0].has_transparency_data
    steps = {
        "reduced to 8 bits": is_wide,
        "composited on white": is_composited,
        "greyscale": has_transparency or not (is_wide or images[0].mode == "L"),
    }
    return pixels, tuple(name for name, is_done in steps.items() if is_done)


def _load(file: ImageStructure, *, rawmode: str | None = None) -> Image.Image:
    """Let Pillow decode a file; with a raw mode, in another reading of its bytes."""
    image = Image.open(io.BytesIO(file.data), formats=[file.format])
    if image.size != (file.width, file.height):
        raise ImageError("the image is broken: it has another size than it announces")
    if rawmode is not None and isinstance(image, ImageFile.ImageFile):
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
    image.load()
    return image


def _bands(height: int, width: int) -> Iterator[slice]:
    step = max(_BAND_PIXELS // width, 1)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _grey_band(bands: Sequence[Image.Image], transparent: tuple[int, ...] | None) -> tuple[Pixels, bool]:
    """Grey pixels on white paper, and whether paper shows through."""
    band = bands[0]
    if transparent is not None:
        is_clear = _is_clear(bands, transparent)
        return np.where(is_clear, _WHITE, _without_colour(band)), bool(is_clear.any())
    if not band.has_transparency_data:
        return _without_colour(band), False
    colour = band.convert("RGBA")
    is_opaque = colour.getchannel("A").getextrema() == (255, 255)
    paper = Image.new("RGBA", colour.size, "white")
    return _without_colour(Image.alpha_composite(paper, colour).convert("RGB")), not is_opaque


def _is_clear(bands: Sequence[Image.Image], transparent: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where all samples are those that stand for transparent; a second band has the low bytes of the samples."""
    samples = np.asarray(bands[0].convert("L") if bands[0].mode == "1" else bands[0]).astype(np.uint16)
    for low in bands[1:]:
        samples = samples << 8 | np.asarray(low)
    is_equal = samples == np.array(transparent, np.uint16)
    return np.asarray(is_equal.all(axis=2) if is_equal.ndim == 3 else is_equal)


def _without_colour(band: Image.Image) -> Pixels:
    if band.mode == _WIDE_GREY:
        return (np.asarray(band) >> 8).astype(np.uint8)
    return np.asarray(band if band.mode == "L" else band.convert("L"))
