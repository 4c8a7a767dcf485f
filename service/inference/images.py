"""Untrusted bytes or arrays -> grey pixels of any size."""

import io
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from tokenize import TokenError
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from service.inference import png
from service.inference.formats import FORMATS, Announced, ImageError, UnknownFormatError, read_structure

__all__ = ["FORMATS", "SIDE", "ImageError", "UnknownFormatError"]

SIDE = 28

Pixels = png.Pixels

_MAX_NPY_HEADER = 1000  # bytes
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

# What Pillow's parsers raise on broken files.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, struct.error)

Image.MAX_IMAGE_PIXELS = None  # our limit decides, before Pillow sees a file


class TooManyPixelsError(ImageError):
    """An image that would cost more to decode than is allowed."""


class DecoderError(ImageError):
    """An image on which the decoder failed in a way that it shouldn't; the cause says how."""


class Grey(NamedTuple):
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


class EncodedImage(NamedTuple):
    """An image file whose structure has been read and found acceptable, not yet decoded."""

    image: Announced | png.PlainPng

    @property
    def cost(self) -> int:
        """What decoding costs: width times height, more for pixels of more than three bytes and for some formats."""
        image = self.image
        return image.cost if isinstance(image, Announced) else self.pixel_count

    @property
    def pixel_count(self) -> int:
        """Width times height."""
        return self.image.width * self.image.height

    @property
    def plain(self) -> png.PlainPng | None:
        """The file, if it is of the kind and size of which `decode_plain` decodes many at once."""
        image = self.image
        return image if isinstance(image, png.PlainPng) and (image.width, image.height) == (SIDE, SIDE) else None


class ImageLimits(NamedTuple):
    """What an image file may announce; arguments of `open_image`."""

    max_pixels: int
    max_aspect_ratio: float = math.inf


def open_image(data: bytes, *, max_pixels: int, max_aspect_ratio: float = math.inf) -> EncodedImage:
    """Read the structure of an image file.

    Args:
        data: the file.
        max_pixels: of three bytes, which decoding it may cost as much as.
        max_aspect_ratio: largest ratio of its longer side to the shorter one.

    Raises:
        UnknownFormatError: not a PNG, JPEG or WebP file.
        TooManyPixelsError: more than `max_pixels` pixels announced.
        ImageError: a broken structure, or a longer side.
    """
    with _as_image_error:
        image = png.PlainPng.of(data) or read_structure(data)
    encoded, size = EncodedImage(image), f"{image.width} x {image.height} pixels"
    if encoded.cost > max_pixels:
        counted = "" if encoded.cost == encoded.pixel_count else f", which count as {encoded.cost}"
        raise TooManyPixelsError(f"the image has {size}{counted}, more than {max_pixels}")
    if max(image.width, image.height) > max_aspect_ratio * min(image.width, image.height):
        raise ImageError(f"the image has {size}: a side may be {max_aspect_ratio:g} times as long as the other at most")
    return encoded


def decode_image(encoded: EncodedImage) -> Grey:
    """Decode an opened image file.

    Raises:
        TooManyPixelsError: there is not enough memory.
        DecoderError: the decoder failed in a way that it shouldn't.
        ImageError: truncated or broken data.
    """
    image = encoded.image
    if isinstance(image, png.PlainPng):
        (grey,) = decode_plain([image])
        if grey is not None:
            return grey
        image = read_structure(image.data)
    with _as_image_error:
        pixels, steps = _grey(image)
    frames = () if image.frames == 1 else (f"only the first of {image.frames} frames was used",)
    return Grey(_upright(pixels, image.orientation), image.format, steps, frames + image.warnings)


def decode_plain(files: Sequence[png.PlainPng]) -> list[Grey | None]:
    """Decode plain files of the same size together; None for one that `decode_image` must look at."""
    return [None if pixels is None else Grey(pixels, "PNG") for pixels in png.decode(files)]


def array_image(values: Any, *, unit_range: bool) -> Grey:
    """Take an image given as nested lists: 28 x 28, or 784 values row by row.

    Args:
        values: integers 0..255, or numbers in [0, 1] (rounded to the nearest of 256 levels).
        unit_range: whether the values are of the second kind.

    Raises:
        ImageError: another shape, or values of another kind or range.
    """
    flat = _flat(values)
    top = 1 if unit_range else 255
    wrong = ImageError(f"the values of an image must be numbers in 0..{top}")
    if not {int, float}.issuperset(map(type, flat)):
        raise wrong
    try:
        numbers = np.array(flat, dtype=np.float64)
    except OverflowError as error:
        raise wrong from error
    if not bool(((numbers >= 0) & (numbers <= top)).all()):
        raise wrong
    if not unit_range and bool((numbers != np.rint(numbers)).any()):
        raise ImageError('the values of an image must be integers 0..255; for numbers in [0, 1] give "dtype": "float"')
    return Grey(np.rint(numbers * (255 / top)).astype(np.uint8).reshape(SIDE, SIDE), "array")


def read_npy_header(file: IO[bytes]) -> int:
    """Read the header of a .npy file of uint8 images (B, 28, 28), or one of (28, 28): how many there are.

    Raises:
        ValueError: no such header.
        TypeError: it announces something else; the message says what it should be.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            raise ValueError(f"version {version} of the format is not known")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file, max_header_size=_MAX_NPY_HEADER)
    except (ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError, TokenError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    if dtype != np.uint8 or shape[-2:] != (SIDE, SIDE) or len(shape) not in {2, 3} or fortran_order:
        raise TypeError(f"uint8 images of shape (B, {SIDE}, {SIDE}) in C order, got {dtype} of shape {shape}")
    return shape[0] if len(shape) == 3 else 1


class _AsImageError:
    """Turns whatever a decoder raises on hostile bytes into an ImageError."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, MemoryError):
            raise TooManyPixelsError("the image takes more memory than there is") from error
        if isinstance(error, _PILLOW_ERRORS) and not isinstance(error, ImageError):
            raise ImageError(f"the image is broken: {error}") from error
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            raise DecoderError("the image is broken: the decoder failed on it") from error


_as_image_error = _AsImageError()


def _grey(announced: Announced) -> tuple[Pixels, tuple[str, ...]]:
    """Decode to grey, in bands of rows: beside the decoded image and its grey pixels, little is held at once."""
    images = [_load(announced)]
    if announced.transparent is not None and images[0].mode == "RGB" and announced.bits == 16:
        images.append(_load(announced, rawmode=_LOW_BYTES))  # Pillow reads one byte of the two of a sample
    pixels = np.empty((announced.height, announced.width), np.uint8)
    is_composited = False
    for rows in _bands(announced.height, announced.width):
        bands = [image.crop((0, rows.start, announced.width, rows.stop)) for image in images]
        pixels[rows], clear = _grey_band(bands, announced.transparent)
        is_composited |= clear
    is_wide = images[0].mode == _WIDE_GREY
    has_transparency = announced.transparent is not None or images[0].has_transparency_data
    steps = {
        "reduced to 8 bits": is_wide,
        "composited on white": is_composited,
        "greyscale": has_transparency or not (is_wide or images[0].mode == "L"),
    }
    return pixels, tuple(name for name, is_done in steps.items() if is_done)


def _load(announced: Announced, *, rawmode: str | None = None) -> Image.Image:
    """Let Pillow decode a file; with a raw mode, in another reading of its bytes."""
    image = Image.open(io.BytesIO(announced.data), formats=[announced.format])
    if image.size != (announced.width, announced.height):
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


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn pixels as EXIF's orientation says (Exif 2.3, tag 0x0112)."""
    return np.ascontiguousarray(_TURNS[orientation](pixels))


def _flat(values: Any) -> list[Any]:
    wrong = ImageError(f"an image array must have the shape {SIDE} x {SIDE}, or {SIDE * SIDE} values row by row")
    if not isinstance(values, list):
        raise wrong
    if len(values) == SIDE and all(isinstance(row, list) and len(row) == SIDE for row in values):
        return [value for row in values for value in row]
    if len(values) != SIDE * SIDE:
        raise wrong
    return values
