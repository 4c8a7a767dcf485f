"""Files that hold one array of images: .npy and IDX."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from service.bulk.inputs.source import AT_ONCE, InputError, Shard, select, shard_size
from service.bulk.inputs.tables import PIXELS, pixel_table
from service.inference.arrays import read_npy_header
from service.inference.pixels import SIDE


@dataclass(frozen=True)
class ArrayShard:
    """Consecutive images (28, 28), uint8, in a file; the id is the index, from 0."""

    filesystem: fs.FileSystem
    path: str
    compression: str | None
    offset: int
    first: int
    count: int

    def read(self, ids: pa.Array, *, include: bool) -> Iterator[pa.Table]:
        """Read the images in order, see `Shard.read`.

        Raises:
            InputError: the file is too short.
        """
        with self.filesystem.open_input_file(self.path) as file:
            stream = pa.CompressedInputStream(file, self.compression) if self.compression else file
            if self.compression:
                stream.read(self.offset + self.first * PIXELS)
            else:
                stream.seek(self.offset + self.first * PIXELS)
            for first in range(self.first, self.first + self.count, AT_ONCE):
                count = min(AT_ONCE, self.first + self.count - first)
                data = stream.read(count * PIXELS)
                if len(data) < count * PIXELS:
                    raise InputError(f"{self.path}: ends within image {first + len(data) // PIXELS}")
                names = pa.array(map(str, range(first, first + count)), pa.string())
                yield pixel_table(names, data).filter(select(names, ids, include=include))


def npy_shards(filesystem: fs.FileSystem, path: str) -> Sequence[Shard]:
    """Read the header of an .npy file, and divide its images into shards.

    Raises:
        InputError: the file is not an .npy file of images.
    """
    with filesystem.open_input_file(path) as file:
        try:
            count = read_npy_header(file)
        except ValueError as error:
            raise InputError(f"{path}: is not an .npy file ({error})") from error
        except TypeError as error:
            raise InputError(f"{path}: must have {error}") from error
        return _array_shards(filesystem, path, file.tell(), count, size=file.size())


def idx_shards(filesystem: fs.FileSystem, path: str, kind: str) -> list[Shard]:
    """Read the header of an IDX file, and divide its images into shards.

    The header has a magic number, then sizes, big-endian (yann.lecun.com/exdb/mnist).

    Raises:
        InputError: the file is not an IDX file of images.
    """
    compression = "gzip" if kind == "idx.gz" else None
    with filesystem.open_input_stream(path, compression=compression) as stream:
        magic, count, height, width = struct.unpack(">4I", stream.read(16).ljust(16, b"\0"))
    if (magic, height, width) != (0x803, SIDE, SIDE):
        raise InputError(f"{path}: must be an IDX file of images of {SIDE} x {SIDE}")
    if compression:
        return [ArrayShard(filesystem, path, compression, 16, 0, count)]
    return _array_shards(filesystem, path, 16, count, size=filesystem.get_file_info(path).size)


def _array_shards(filesystem: fs.FileSystem, path: str, offset: int, count: int, *, size: int) -> list[Shard]:
    if size != offset + count * PIXELS:
        raise InputError(f"{path}: must have {offset + count * PIXELS} bytes for its {count} images, got {size}")
    if count == 0:
        raise InputError(f"{path}: has no images")
    step = shard_size(count)
    return [
        ArrayShard(filesystem, path, None, offset, first, min(step, count - first)) for first in range(0, count, step)
    ]
