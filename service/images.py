"""Untrusted bytes or arrays -> one (28, 28) uint8 image, light on dark as in Fashion-MNIST."""

import io
import itertools
import math
import struct
from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from tokenize import TokenError
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from service import png

FORMATS = ("PNG", "JPEG", "WEBP")
SIDE = 28

_MAX_NPY_HEADER = 1000  # bytes
_MARGIN_TOLERANCE = 13  # 5 % of full scale, the margin rule of Fashion-MNIST's own preparation (arXiv:1708.07747, 2)
_LIGHT = 127.5  # a brighter border is light
_UNSURE = (96, 160)  # a border as bright as that, up to the second, may be either
_BUSY_BORDER = 0.5  # share of border pixels off their median; 21 of the 70,000 garments have more

_WARNINGS = (
    "the border is neither dark nor light: say invert=yes or invert=no",
    "the background is not plain: Fashion-MNIST shows one garment on an even background",
    "the image is blank",
)

# What Pillow's parsers raise on broken files.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, struct.error)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = png.Pixels


class Invert(StrEnum):
    """Whether to turn dark-on-light into light-on-dark: `auto` decides by the brightness of the border."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


class ImageError(ValueError):
    """An image that can't be taken; the message says why."""


class UnknownFormatError(ImageError):
    """Bytes that are no PNG, JPEG or WebP image."""


class TooManyPixelsError(ImageError):
    """An image whose header announces more pixels than are allowed."""


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


class Prepared(NamedTuple):
    """The image as the network sees it, and how it came to be.

    Attributes:
        pixels: (28, 28) uint8, light on dark.
        source: format of the source: "PNG", "JPEG", "WEBP" or "array".
        size: width and height of the source.
        steps: what was done to it, in order.
        warnings: what may make the prediction worse.
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
        """16 hexadecimal digits that stand for the pixels."""
        return blake2b(self.pixels.tobytes(), digest_size=8).hexdigest()


class EncodedImage(NamedTuple):
    """An image file whose header has been read and found acceptable, not yet decoded."""

    image: Image.Image | png.PlainPng

    @property
    def pixel_count(self) -> int:
        """Width times height, which decoding costs."""
        return self.image.width * self.image.height

    @property
    def plain(self) -> png.PlainPng | None:
        """The file, if it is of the kind and size of which `decode_plain` decodes many at once."""
        image = self.image
        return image if isinstance(image, png.PlainPng) and (image.width, image.height) == (SIDE, SIDE) else None


def open_image(data: bytes, *, max_pixels: int) -> EncodedImage:
    """Read the header of an image file.

    Raises:
        UnknownFormatError: not a PNG, JPEG or WebP file.
        TooManyPixelsError: more than `max_pixels` pixels announced.
        ImageError: a broken header.
    """
    image = png.PlainPng.of(data) or _open(data)
    if image.width * image.height > max_pixels:
        raise TooManyPixelsError(f"the image has {image.width} x {image.height} pixels, more than {max_pixels}")
    return EncodedImage(image)


def _open(data: bytes) -> Image.Image:
    with _as_image_error:
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise UnknownFormatError(f"the image must be a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from error


def decode_image(encoded: EncodedImage) -> Grey:
    """Decode an opened image file.

    Raises:
        ImageError: truncated or broken data.
    """
    image = encoded.image
    if isinstance(image, png.PlainPng):
        (grey,) = decode_plain([image])
        if grey is not None:
            return grey
        image = _open(image.data)
    with _as_image_error:
        frames = getattr(image, "n_frames", 1)
        pixels, steps = _to_grey(_upright(image))
    warnings = () if frames == 1 else (f"only the first of {frames} frames was used",)
    return Grey(pixels, str(image.format), tuple(steps), warnings)


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
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= top for value in flat):
        raise ImageError(f"the values of an image must be numbers in 0..{top}")
    if not unit_range and not all(float(value).is_integer() for value in flat):
        raise ImageError('the values of an image must be integers 0..255; for numbers in [0, 1] give "dtype": "float"')
    scaled = np.asarray(flat, dtype=np.float64) * (255 / top)
    return Grey(np.rint(scaled).astype(np.uint8).reshape(SIDE, SIDE), "array")


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


def prepare(grey: Grey, *, invert: Invert = Invert.AUTO) -> Prepared:
    """Bring an image of any size to light on dark and to 28 x 28.

    Larger and smaller images are treated as Fashion-MNIST's own were: plain margins cut off, the longer side fitted,
    the shorter one padded, the garment in the centre. 28 x 28 images keep their pixels' places.
    """
    (prepared,) = prepare_all([grey], invert=invert)
    return prepared


def prepare_all(greys: Sequence[Grey], *, invert: Invert = Invert.AUTO) -> list[Prepared]:
    """Prepare images of the same size, as each alone; see `prepare`."""
    if not greys:
        return []
    height, width = greys[0].pixels.shape
    pixels_BHW = greys[0].pixels[None] if len(greys) == 1 else np.stack([grey.pixels for grey in greys])
    sides = (pixels_BHW[:, 0], pixels_BHW[:, -1], pixels_BHW[:, :, 0], pixels_BHW[:, :, -1])
    border_BK = np.concatenate(sides, axis=1)
    count = border_BK.shape[1]
    brightness = [total / count for total in np.add.reduce(border_BK, axis=1).tolist()]
    turned = [invert is Invert.YES or (invert is Invert.AUTO and one > _LIGHT) for one in brightness]
    if any(turned):
        flips_B = np.array(turned) * np.uint8(255)
        pixels_BHW = pixels_BHW ^ flips_B[:, None, None]  # x ^ 255 is 255 - x
        border_BK ^= flips_B[:, None]
    border_BK.sort(axis=1)
    backgrounds_B1 = border_BK[:, count // 2, None]
    others = np.add.reduce(_stands_out(border_BK, backgrounds_B1), axis=1, dtype=np.intp).tolist()
    flat_BP = pixels_BHW.reshape(len(greys), height * width)
    ranges = (np.maximum.reduce(flat_BP, axis=1) - np.minimum.reduce(flat_BP, axis=1)).tolist()
    backgrounds = backgrounds_B1.ravel().tolist()
    prepared = []
    for index, grey in enumerate(greys):
        pixels, steps = pixels_BHW[index], grey.steps
        if turned[index]:
            steps += ("inverted",)
        if (height, width) != (SIDE, SIDE):
            pixels, fitting = _fit(pixels, backgrounds[index])
            steps += fitting
        warned = (
            invert is Invert.AUTO and _UNSURE[0] <= brightness[index] < _UNSURE[1],
            others[index] > _BUSY_BORDER * count,
            ranges[index] <= _MARGIN_TOLERANCE,
        )
        warnings = (*grey.warnings, *itertools.compress(_WARNINGS, warned))
        prepared.append(Prepared(pixels, grey.source, (width, height), steps, warnings))
    return prepared


def _fit(grey: Pixels, background: int) -> tuple[Pixels, tuple[str, ...]]:
    trimmed = _without_margins(grey, background)
    steps = (trimmed.shape != grey.shape, trimmed.shape[0] != trimmed.shape[1], True)
    fitting = _resize(_square(trimmed, background))
    return fitting, tuple(itertools.compress(("trimmed", "padded", "resized"), steps))


class _AsImageError:
    """Turns whatever Pillow raises on hostile bytes into an ImageError."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Image.DecompressionBombError):
            raise TooManyPixelsError(f"the image has too many pixels: {error}") from error
        if isinstance(error, _PILLOW_ERRORS) and not isinstance(error, ImageError):
            raise ImageError(f"the image is broken: {error}") from error


_as_image_error = _AsImageError()


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose would also write the other EXIF data anew, which fails for many a harmless photograph.
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _to_grey(image: Image.Image) -> tuple[Pixels, list[str]]:
    steps = []
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert("L") would clip
        steps.append("reduced to 8 bits")
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    if image.has_transparency_data:
        if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            steps.append("composited on white")
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")
    if image.mode != "L":
        image = image.convert("L")
        steps.append("greyscale")
    return np.asarray(image), steps


def _flat(values: Any) -> list[Any]:
    wrong = ImageError(f"an image array must have the shape {SIDE} x {SIDE}, or {SIDE * SIDE} values row by row")
    if not isinstance(values, list):
        raise wrong
    if len(values) == SIDE and all(isinstance(row, list) and len(row) == SIDE for row in values):
        return [value for row in values for value in row]
    if len(values) != SIDE * SIDE:
        raise wrong
    return values


def _stands_out(grey: Pixels, background: Pixels | int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.abs(np.subtract(grey, background, dtype=np.int16)) > _MARGIN_TOLERANCE


def _without_margins(grey: Pixels, background: int) -> Pixels:
    stands_out = _stands_out(grey, background)
    rows, columns = np.flatnonzero(stands_out.any(axis=1)), np.flatnonzero(stands_out.any(axis=0))
    if not len(rows):
        return grey
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _square(grey: Pixels, background: int) -> Pixels:
    missing = [max(grey.shape) - side for side in grey.shape]
    return np.pad(grey, [(gap // 2, math.ceil(gap / 2)) for gap in missing], constant_values=background)


def _resize(grey: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
