"""Converts columns of images in all supported forms into tables with schema `IMAGES`."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.input_spec import InputSpec
from service.bulk.inputs.source import IMAGES
from service.inference.arrays import pixels_of_array
from service.inference.errors import ImageError

_MISSING = "invalid-image: the image is missing"


def pixel_table(ids: pa.Array, data: bytes, size: int) -> pa.Table:
    """Make a table from the bytes of consecutive images, `size` bytes each."""
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(ids), [None, pa.py_buffer(data)])
    return pa.table([ids, images.cast(pa.binary()), pa.nulls(len(ids), pa.string())], schema=IMAGES)


def column_table(ids: pa.Array, column: pa.Array, spec: InputSpec) -> pa.Table:
    """Make a table from a column of image files or arrays."""
    if pa.types.is_struct(column.type):
        column = column.field("bytes")  # a field of a null struct is null, too
    if is_array(column.type):
        return _array_table(ids, column, spec)
    images = column.cast(pa.binary())
    errors = pa.array(pc.if_else(images.is_null(), _MISSING, pa.scalar(None, pa.string())))
    return pa.table([ids, images, errors], schema=IMAGES)


def _array_table(ids: pa.Array, column: pa.Array, spec: InputSpec) -> pa.Table:
    """Make a table from lists of numbers: integers 0..255, or floating-point numbers in [0, 1]."""
    unit_range = pa.types.is_floating(_leaf(column.type))
    top = 1 if unit_range else 255
    values_B = _regular(column, spec)
    if values_B is not None and bool(((values_B >= 0) & (values_B <= top)).all()):
        pixels = np.rint(values_B.astype(np.float64) * (255 / top)).astype(np.uint8)
        return pixel_table(ids, pixels.tobytes(), spec.values)
    images: list[bytes | None] = []
    errors: list[str | None] = []
    for values in column.to_pylist():
        try:
            images.append(pixels_of_array(values, spec, unit_range=unit_range).tobytes())
            errors.append(None)
        except ImageError as error:
            images.append(None)
            errors.append(f"invalid-image: {error}")
    return pa.table([ids, images, errors], schema=IMAGES)


def _leaf(kind: pa.DataType) -> pa.DataType:
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind


def _regular(column: pa.Array, spec: InputSpec) -> np.ndarray | None:
    """Values of lists, (B, H, W) or (B, H, W, 3), if all have the shape of an image, else None."""
    sides = []
    while hasattr(column.type, "value_type"):
        lengths = pc.list_value_length(column)
        if column.null_count or pc.count_distinct(lengths).as_py() != 1:
            return None
        sides.append(lengths[0].as_py())
        column = column.flatten()
    shapes = (spec.pixel_shape, spec.shape[-len(spec.pixel_shape) :], (spec.values,))
    if column.null_count or tuple(sides) not in shapes:
        return None
    return spec.as_pixels(column.to_numpy(zero_copy_only=False), (-1, *sides))


def is_encoded(kind: pa.DataType) -> bool:
    """Whether a column has image files: bytes, or structs with bytes and path as in Hugging Face data sets."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_encoded(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_array(kind: pa.DataType) -> bool:
    """Whether a column has flat or nested lists of numbers."""
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return True
    return False
