"""Image files: PNG, JPEG and WebP."""

import itertools
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from service.bulk.inputs.source import AT_ONCE, IMAGES, one_line, select, shard_size

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_BYTES_AT_ONCE = 2**24
_CONNECTIONS = 16  # to a filesystem that is not local


@dataclass(frozen=True)
class FileShard:
    """Image files; the id is the path relative to the folder, or to the part of a pattern without wildcards."""

    filesystem: fs.FileSystem
    root: str
    names: Sequence[str]
    sizes: Sequence[int]
    max_bytes: int

    @property
    def count(self) -> int:
        """Number of files."""
        return len(self.names)

    def read(self, ids: pa.Array, *, include: bool) -> Iterator[pa.Table]:
        """Read the files in the order of their names, see `Shard.read`."""
        flags = select(pa.array(self.names, pa.string()), ids, include=include).to_pylist()
        selected = itertools.compress(zip(self.names, self.sizes, strict=True), flags)
        is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for group in _groups(selected, self.max_bytes):
                contents = list((map if is_local else pool.map)(self._read, group))
                images = [one if isinstance(one, bytes) else None for one in contents]
                errors = [one if isinstance(one, str) else None for one in contents]
                yield pa.table([group, images, errors], schema=IMAGES)

    def _read(self, name: str) -> bytes | str:
        content = _local_content if isinstance(self.filesystem, fs.LocalFileSystem) else self._content
        try:
            size, data = content(posixpath.join(self.root, name), self.max_bytes)
        except (OSError, pa.ArrowException) as error:
            return f"unreadable-file: {one_line(error)}"
        if data is None:
            return f"image-too-large: the file has {size} bytes, more than {self.max_bytes}"
        return data

    def _content(self, path: str, max_bytes: int) -> tuple[int, bytes | None]:
        """Size of a file, and its content if it has at most `max_bytes` bytes."""
        with self.filesystem.open_input_file(path) as file:
            size = file.size()
            return size, file.read(size) if size <= max_bytes else None


def _local_content(path: str, max_bytes: int) -> tuple[int, bytes | None]:
    """The same by system calls, which take half of PyArrow's time for a small file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return size, os.read(descriptor, size) if size <= max_bytes else None
    finally:
        os.close(descriptor)


def _groups(files: Iterable[tuple[str, int]], max_bytes: int) -> Iterator[list[str]]:
    """Divide files into groups of limited length and size; files larger than `max_bytes` are not read."""
    group: list[str] = []
    size = 0
    for name, file_size in files:
        if group and (len(group) == AT_ONCE or size + file_size > _BYTES_AT_ONCE):
            yield group
            group, size = [], 0
        group.append(name)
        size += min(file_size, max_bytes)
    if group:
        yield group


def file_shards(filesystem: fs.FileSystem, root: str, files: Sequence[fs.FileInfo], max_bytes: int) -> list[FileShard]:
    """Divide files into shards."""
    step = shard_size(len(files))
    parts = [files[first : first + step] for first in range(0, len(files), step)]
    return [
        FileShard(
            filesystem,
            root,
            [posixpath.relpath(file.path, root) for file in part],
            [file.size for file in part],
            max_bytes,
        )
        for part in parts
    ]
