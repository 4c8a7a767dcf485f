"""Images that are sent as arrays of numbers."""

from tokenize import TokenError
from typing import IO, Any

import numpy as np

from model.input_spec import InputSpec
from service.inference.errors import ImageError
from service.inference.pixels import Pixels

_MAX_NPY_HEADER = 1000  # bytes


def pixels_of_array(values: Any, spec: InputSpec, *, unit_range: bool) -> Pixels:
    """Convert an image from nested lists, H x W, H x W x 3 or 3 x H x W, or from all its values in one list.

    Args:
        values: integers 0..255, or numbers in [0, 1] (rounded to the nearest of 256 levels).
        spec: what the network takes.
        unit_range: whether the values are numbers in [0, 1].

    Returns:
        Pixels of the network's shape.

    Raises:
        ImageError: another shape, or values of another type or range.
    """
    flat, shape = _flat(values, spec.values)
    top = 1 if unit_range else 255
    wrong = ImageError(f"the values of an image must be numbers in 0..{top}")
    if shape is None or shape not in {spec.pixel_shape, spec.shape[-len(spec.pixel_shape) :], (spec.values,)}:
        raise wrong_shape(spec)
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
    (pixels,) = spec.as_pixels(np.rint(numbers * (255 / top)).astype(np.uint8), shape)
    return np.asarray(pixels)


def wrong_shape(spec: InputSpec) -> ImageError:
    """The error of an array of another shape."""
    sides = " x ".join(map(str, spec.pixel_shape))
    return ImageError(f"an image array must have the shape {sides}, or {spec.values} values row by row")


def _flat(values: Any, limit: int) -> tuple[list[Any], tuple[int, ...] | None]:
    """The values of nested lists and their shape; None for irregular lists, or more values than the limit."""
    if not isinstance(values, list):
        return [], None
    flat: list[Any] = values
    shape: tuple[int, ...] = (len(values),)
    for _ in range(2):
        if not (flat and isinstance(flat[0], list)):
            break
        size = len(flat[0])
        if len(flat) * size > limit or not all(isinstance(row, list) and len(row) == size for row in flat):
            return [], None
        shape = (*shape, size)
        flat = [value for row in flat for value in row]
    return flat, shape


def read_npy_shape(file: IO[bytes], spec: InputSpec) -> tuple[int, ...]:
    """Read the header of an .npy file of uint8 images: (B, H, W), (B, H, W, 3) or (B, 3, H, W), or one image.

    Returns:
        The shape of the array.

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
    is_flat = shape in {(spec.values,), (shape[0] if shape else 0, spec.values)}
    if dtype != np.uint8 or is_flat or fortran_order or spec.layout(shape) is None:
        sides = ", ".join(map(str, spec.pixel_shape))
        raise TypeError(f"uint8 images of shape (B, {sides}) in C order, got {dtype} of shape {shape}")
    return tuple(shape)
