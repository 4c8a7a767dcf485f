"""Images that are sent as arrays of numbers."""

import math
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from service.inference.errors import ImageError
from service.inference.pixels import SIDE, Pixels

_MAX_NPY_HEADER = 1000  # bytes


def pixels_of_array(values: Any, shape: tuple[int, ...] = (SIDE, SIDE), *, unit_range: bool) -> Pixels:
    """Convert an image from nested lists of its shape, or from all its values in one list, row by row.

    Args:
        values: integers 0..255, or numbers in [0, 1] (rounded to the nearest of 256 levels).
        shape: of the pixels, (H, W) or (H, W, 3).
        unit_range: whether the values are numbers in [0, 1].

    Returns:
        Pixels of this shape.

    Raises:
        ImageError: another shape, or values of another type or range.
    """
    flat = _flat(values, shape)
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
    return np.rint(numbers * (255 / top)).astype(np.uint8).reshape(shape)


def wrong_shape(shape: tuple[int, ...]) -> ImageError:
    """The error of an array of another shape."""
    return ImageError(
        f"an image array must have the shape {' x '.join(map(str, shape))}, or {math.prod(shape)} values row by row"
    )


def _flat(values: Any, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(values, list):
        raise wrong_shape(shape)
    flat: list[Any] = values
    if len(flat) == math.prod(shape) and not any(isinstance(value, list) for value in flat):
        return flat
    for size in shape[1:]:
        if not all(isinstance(row, list) and len(row) == size for row in flat):
            raise wrong_shape(shape)
        flat = [value for row in flat for value in row]
    if len(flat) != math.prod(shape):
        raise wrong_shape(shape)
    return flat


def read_npy_header(file: IO[bytes], image_shape: tuple[int, ...] = (SIDE, SIDE)) -> int:
    """Read the header of an .npy file of uint8 images, (B, H, W) or (B, H, W, 3), or of one image.

    Args:
        file: the file, which is read up to the end of the header.
        image_shape: shape of one image.

    Returns:
        The number of images.

    Raises:
        ValueError: the header is invalid.
        TypeError: the array has another dtype, shape or order; the message has the expected and the actual ones.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            raise ValueError(f"version {version} of the format is not supported")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file, max_header_size=_MAX_NPY_HEADER)
    except (ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError, TokenError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    is_one = shape == image_shape
    if dtype != np.uint8 or not (is_one or shape[1:] == image_shape) or fortran_order:
        expected = ", ".join(map(str, ("B", *image_shape)))
        raise TypeError(f"uint8 images of shape ({expected}) in C order, got {dtype} of shape {shape}")
    return 1 if is_one else shape[0]
