"""Images that are sent as arrays of numbers."""

from tokenize import TokenError
from typing import IO, Any

import numpy as np

from service.inference.errors import ImageError
from service.inference.pixels import SIDE, Pixels

_MAX_NPY_HEADER = 1000  # bytes


def pixels_of_array(values: Any, *, unit_range: bool) -> Pixels:
    """Convert an image from nested lists: 28 x 28, or 784 values row by row.

    Args:
        values: integers 0..255, or numbers in [0, 1] (rounded to the nearest of 256 levels).
        unit_range: whether the values are numbers in [0, 1].

    Returns:
        Pixels, (28, 28).

    Raises:
        ImageError: another shape, or values of another type or range.
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
    return np.rint(numbers * (255 / top)).astype(np.uint8).reshape(SIDE, SIDE)


def _flat(values: Any) -> list[Any]:
    wrong = ImageError(f"an image array must have the shape {SIDE} x {SIDE}, or {SIDE * SIDE} values row by row")
    if not isinstance(values, list):
        raise wrong
    if len(values) == SIDE and all(isinstance(row, list) and len(row) == SIDE for row in values):
        return [value for row in values for value in row]
    if len(values) != SIDE * SIDE:
        raise wrong
    return values


def read_npy_header(file: IO[bytes]) -> int:
    """Read the header of an .npy file of uint8 images (B, 28, 28), or one image (28, 28).

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
    if dtype != np.uint8 or shape[-2:] != (SIDE, SIDE) or len(shape) not in {2, 3} or fortran_order:
        raise TypeError(f"uint8 images of shape (B, {SIDE}, {SIDE}) in C order, got {dtype} of shape {shape}")
    return shape[0] if len(shape) == 3 else 1
