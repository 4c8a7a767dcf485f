"""Files that hold one array of images: .npy and IDX."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import fs

from model.input_spec import InputSpec
from service.bulk.inputs.source import AT_ONCE, InputError, Shard, select, shard_size
from service.bulk.inputs.tables import pixel_table
from service.inference.arrays import read_npy_shape


@dataclass(frozen=True)
class ArrayShard:
    """Consecutive images, uint8, in a file; the id is the index, from 0.

    Attributes:
        filesystem: where the file is.
        path: the file.
        compression: as PyArrow names it; None without.
        offset: bytes before the first image of the file.
        first: index of the shard's first image.
        count: number of images.
        spec: the images that the network takes.
        shape: shape of one image in the file.
    """

    filesystem: fs.FileSystem
    path: str
    compression: str | None
    offset: int
    first: int
    count: int
    spec: InputSpec
    shape: tuple[int, ...]

    def read(self, ids: pa.Array, *, include: bool) -> Iterator[pa.Table]:
        """Read the images in order, see `Shard.read`.

        Raises:
            InputError: the file is too short.
        """
        size = self.spec.values
        with self.filesystem.open_input_file(self.path) as file:
            stream = pa.CompressedInputStream(file, self.compression) if self.compression else file
            if self.compression:
                stream.read(self.offset + self.first * size)
            else:
                stream.seek(self.offset + self.first * size)
            for first in range(self.first, self.first + self.count, AT_ONCE):
                count = min(AT_ONCE, self.first + self.count - first)
                data = stream.read(count * size)
                if len(data) < count * size:
                    raise InputError(f"{self.path}: ends within image {first + len(data) // size}")
                names = pa.array(map(str, range(first, first + count)), pa.string())
                yield pixel_table(names, self._pixels(data), size).filter(select(names, ids, include=include))

    def _pixels(self, data: bytes) -> bytes:
        """Arrange the bytes of images with the channels last."""
        if self.shape == self.spec.pixel_shape:
            return data
        return self.spec.as_pixels(np.frombuffer(data, np.uint8), (-1, *self.shape)).tobytes()


def npy_shards(filesystem: fs.FileSystem, path: str, spec: InputSpec) -> Sequence[Shard]:
    """Read the header of an .npy file, and divide its images into shards.

    Raises:
        InputError: the file is not an .npy file of images.
    """
    with filesystem.open_input_file(path) as file:
        try:
            shape = read_npy_shape(file, spec)
        except ValueError as error:
            raise InputError(f"{path}: is not an .npy file ({error})") from error
        except TypeError as error:
            raise InputError(f"{path}: must have {error}") from error
        return _array_shards(filesystem, path, file.tell(), shape, spec, size=file.size())


def idx_shards(filesystem: fs.FileSystem, path: str, kind: str, spec: InputSpec) -> list[Shard]:
    """Read the header of an IDX file, and divide its images into shards.

    The header has a magic number, then sizes, big-endian (yann.lecun.com/exdb/mnist).

    Raises:
        InputError: the file is not an IDX file of images of the network's size.
    """
    if spec.channels > 1:
        raise InputError(f"{path}: an IDX file has grey images, and this model takes RGB images: use .npy or files")
    compression = "gzip" if kind == "idx.gz" else None
    with filesystem.open_input_stream(path, compression=compression) as stream:
        magic, count, height, width = struct.unpack(">4I", stream.read(16).ljust(16, b"\0"))
    if (magic, height, width) != (0x803, *spec.pixel_shape):
        raise InputError(f"{path}: must be an IDX file of images of {spec.height} x {spec.width}")
    if compression:
        return [ArrayShard(filesystem, path, compression, 16, 0, count, spec, spec.pixel_shape)]
    return _array_shards(
        filesystem, path, 16, (count, *spec.pixel_shape), spec, size=filesystem.get_file_info(path).size
    )


def _array_shards(
    filesystem: fs.FileSystem, path: str, offset: int, shape: tuple[int, ...], spec: InputSpec, *, size: int
) -> list[Shard]:
    count = spec.count(shape) or 0
    one = shape[-len(spec.pixel_shape) :]
    if size != offset + count * spec.values:
        raise InputError(f"{path}: must have {offset + count * spec.values} bytes for its {count} images, got {size}")
    if count == 0:
        raise InputError(f"{path}: has no images")
    step = shard_size(count)
    return [
        ArrayShard(filesystem, path, None, offset, first, min(step, count - first), spec, one)
        for first in range(0, count, step)
    ]
