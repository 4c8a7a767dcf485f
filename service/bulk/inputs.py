"""Where images come from: files, Parquet data sets, npy and IDX files, on any filesystem that pyarrow opens."""

import hashlib
import itertools
import os
import posixpath
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper
from pandas.util import hash_array
from pyarrow import fs

from service.inference.images import SIDE, ImageError, array_image, read_npy_header

# What is read: an encoded file or the 784 bytes of an array, or why there is neither.
IMAGES = pa.schema([("id", pa.string()), ("image", pa.binary()), ("error", pa.string())])
SHARD = 4096  # images that are read, scored and written together, unless there are many millions

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_PARQUET = ".parquet"
_AT_ONCE = 1024  # rows, or fewer where they are large
_BYTES_AT_ONCE = 2**24
_PIXELS = SIDE * SIDE
_MISSING = "invalid-image: there is none"
_MOST_SHARDS = 1000
_CONNECTIONS = 16  # to a filesystem that is not local
_MAGIC = {b"PAR1": "parquet", b"\x93NUM": "npy", b"\x00\x00\x08\x03": "idx", b"\x1f\x8b": "idx.gz"}


class InputError(ValueError):
    """An input that can't be scored; one line says why."""


class Shard(Protocol):
    """A part of the input, read by one task wherever that runs."""

    @property
    def filesystem(self) -> fs.FileSystem:
        """Where it lies."""

    @property
    def count(self) -> int:
        """Rows, those that are done already included."""

    def read(self, ids: pa.Array, *, wanted: bool) -> Iterator[pa.Table]:
        """Yield tables of `IMAGES`: those of the ids if they are wanted, else all others."""


@dataclass(frozen=True)
class Source:
    """All images of an input.

    Attributes:
        kind: "files", "parquet", "npy" or "idx".
        encoded: whether they are image files, or arrays.
        shards: together, every image once.
        identity: stands for names, sizes and times of what is read: another one, and the input changed.
        left_out: files of a folder that are taken for no images.
    """

    kind: str
    encoded: bool
    shards: Sequence[Shard]
    identity: str
    left_out: int = 0

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(shard.count for shard in self.shards)


def locate(where: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a local path or a URL.

    Raises:
        InputError: no such filesystem.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", where):
        try:
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(where)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{where}: can't be opened ({error})") from error
        return found
    return fs.LocalFileSystem(), str(Path(where).expanduser().absolute())


def open_source(where: str, *, image: str, identifier: str | None, max_bytes: int) -> Source:
    """Find out what the input is, and list it.

    Args:
        where: a folder, a file, or a pattern with *, ? or [], as path or URL.
        image: column of a Parquet data set that has the images.
        identifier: column that has their ids; None for "id" if there is one, else file and row.
        max_bytes: of an image file.

    Raises:
        InputError: nothing there, nothing to score, a column is missing, or ids are not unique.
    """
    filesystem, path = locate(where)
    try:
        root, files, left_out = _list(filesystem, path)
        if not files:
            raise InputError(f"{where}: no images ({', '.join(_SUFFIXES)}) and no {_PARQUET} files there")
        kind = _kind(filesystem, files)
        identity = _identity(root, files)
        if kind == "files":
            shards = _file_shards(filesystem, root, files, max_bytes)
            return Source(kind, encoded=True, shards=shards, identity=identity, left_out=left_out)
        if kind == "parquet":
            return _parquet(filesystem, root, files, image, identifier, identity)
        if len(files) > 1:
            raise InputError(f"{where}: {len(files)} files, of which the first is an array: score one at a time")
        array = _npy(filesystem, files[0].path) if kind == "npy" else _idx(filesystem, files[0].path, kind)
        return Source(kind.partition(".")[0], encoded=False, shards=array, identity=identity)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{where}: can't be read ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """What an error says, without the rest of its story."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _list(filesystem: fs.FileSystem, path: str) -> tuple[str, list[fs.FileInfo], int]:
    """Folder that names are relative to, files in the order of their names, and how many others there are."""
    info = filesystem.get_file_info(path)
    if info.type is fs.FileType.File:
        return posixpath.dirname(path), [info], 0
    if info.type is fs.FileType.Directory:
        root = path.rstrip("/")
        listed = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        files = [file for file in listed if file.type is fs.FileType.File and not _is_hidden(file.path, root)]
    else:
        root = posixpath.dirname(re.split(r"[*?\[]", path, maxsplit=1)[0])
        found = ArrowFSWrapper(filesystem).glob(path)
        if not found:
            raise InputError(f"{path}: there is no such file or folder, and no file fits it as a pattern")
        files = [file for file in filesystem.get_file_info(found) if file.type is fs.FileType.File]
        return root, sorted(files, key=lambda file: file.path), 0
    files.sort(key=lambda file: file.path)
    images = [file for file in files if file.path.lower().endswith(_SUFFIXES)]
    tables = [file for file in files if file.path.endswith(_PARQUET)]
    if images and tables:
        raise InputError(f"{path}: has images and {_PARQUET} files: name the ones to score with a pattern like *.png")
    return root, images or tables, len(files) - len(images or tables)


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(root) :].split("/"))


def _kind(filesystem: fs.FileSystem, files: Sequence[fs.FileInfo]) -> str:
    with filesystem.open_input_stream(files[0].path, compression=None) as stream:
        start = stream.read(4)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "files")
    if kind == "files" and len(files) == 1 and files[0].path.endswith((_PARQUET, ".npy", ".gz")):
        raise InputError(f"{files[0].path}: is not what its name says")
    return kind


def _identity(root: str, files: Iterable[fs.FileInfo]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{posixpath.relpath(file.path, root)}\0{file.size}\0{file.mtime_ns}\n".encode())
    return digest.hexdigest()


def _shard_size(count: int) -> int:
    shards = min(-(-count // SHARD), _MOST_SHARDS)
    return -(-count // max(shards, 1))  # all alike, so that no worker waits at the end for another's


@dataclass(frozen=True)
class FileShard:
    """Image files; the id is the name below the folder, or below the pattern's first part without a wildcard."""

    filesystem: fs.FileSystem
    root: str
    names: Sequence[str]
    sizes: Sequence[int]
    max_bytes: int

    @property
    def count(self) -> int:
        """Files."""
        return len(self.names)

    def read(self, ids: pa.Array, *, wanted: bool) -> Iterator[pa.Table]:
        """Read them in the order of their names."""
        is_chosen = _is_chosen(pa.array(self.names, pa.string()), ids, wanted=wanted).to_pylist()
        chosen = itertools.compress(zip(self.names, self.sizes, strict=True), is_chosen)
        is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for group in _groups(chosen, self.max_bytes):
                found = list((map if is_local else pool.map)(self._read, group))
                images = [one if isinstance(one, bytes) else None for one in found]
                errors = [one if isinstance(one, str) else None for one in found]
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

    def _content(self, path: str, most: int) -> tuple[int, bytes | None]:
        """Size of a file, and its content if it has at most so many bytes."""
        with self.filesystem.open_input_file(path) as file:
            size = file.size()
            return size, file.read(size) if size <= most else None


def _local_content(path: str, most: int) -> tuple[int, bytes | None]:
    """The same by the system's own calls, which take half of the time that PyArrow does for a small file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return size, os.read(descriptor, size) if size <= most else None
    finally:
        os.close(descriptor)


def _groups(files: Iterable[tuple[str, int]], largest: int) -> Iterator[list[str]]:
    """Cut names into lists that are neither long nor large."""
    group: list[str] = []
    size = 0
    for name, more in files:
        if group and (len(group) == _AT_ONCE or size + more > _BYTES_AT_ONCE):
            yield group
            group, size = [], 0
        group.append(name)
        size += min(more, largest)
    if group:
        yield group


@dataclass(frozen=True)
class ArrayShard:
    """Images of (28, 28), uint8, that lie one after the other in a file; the id is the position, from 0."""

    filesystem: fs.FileSystem
    path: str
    compression: str | None
    offset: int
    first: int
    count: int

    def read(self, ids: pa.Array, *, wanted: bool) -> Iterator[pa.Table]:
        """Read them in their order.

        Raises:
            InputError: the file ends before.
        """
        with self.filesystem.open_input_file(self.path) as file:
            stream = pa.CompressedInputStream(file, self.compression) if self.compression else file
            if self.compression:
                stream.read(self.offset + self.first * _PIXELS)
            else:
                stream.seek(self.offset + self.first * _PIXELS)
            for first in range(self.first, self.first + self.count, _AT_ONCE):
                count = min(_AT_ONCE, self.first + self.count - first)
                data = stream.read(count * _PIXELS)
                if len(data) < count * _PIXELS:
                    raise InputError(f"{self.path}: ends within image {first + len(data) // _PIXELS}")
                names = pa.array(map(str, range(first, first + count)), pa.string())
                yield _pixel_table(names, data).filter(_is_chosen(names, ids, wanted=wanted))


def _npy(filesystem: fs.FileSystem, path: str) -> Sequence[Shard]:
    with filesystem.open_input_file(path) as file:
        try:
            count = read_npy_header(file)
        except ValueError as error:
            raise InputError(f"{path}: is no .npy file ({error})") from error
        except TypeError as error:
            raise InputError(f"{path}: must have {error}") from error
        return _array_shards(filesystem, path, file.tell(), count, size=file.size())


def _idx(filesystem: fs.FileSystem, path: str, kind: str) -> list[Shard]:
    """Read the header of an IDX file (yann.lecun.com/exdb/mnist): magic, then sizes, big-endian."""
    compression = "gzip" if kind == "idx.gz" else None
    with filesystem.open_input_stream(path, compression=compression) as stream:
        magic, count, height, width = struct.unpack(">4I", stream.read(16).ljust(16, b"\0"))
    if (magic, height, width) != (0x803, SIDE, SIDE):
        raise InputError(f"{path}: must be an IDX file of images of {SIDE} x {SIDE}")
    if compression:
        return [ArrayShard(filesystem, path, compression, 16, 0, count)]
    return _array_shards(filesystem, path, 16, count, size=filesystem.get_file_info(path).size)


def _array_shards(filesystem: fs.FileSystem, path: str, offset: int, count: int, *, size: int) -> list[Shard]:
    if size != offset + count * _PIXELS:
        raise InputError(f"{path}: must have {offset + count * _PIXELS} bytes for its {count} images, got {size}")
    if count == 0:
        raise InputError(f"{path}: no images there")
    step = _shard_size(count)
    return [
        ArrayShard(filesystem, path, None, offset, first, min(step, count - first)) for first in range(0, count, step)
    ]


@dataclass(frozen=True)
class ParquetShard:
    """Row groups of a Parquet file."""

    filesystem: fs.FileSystem
    path: str
    name: str
    row_groups: Sequence[int]
    first: int
    count: int
    image: str
    identifier: str | None

    def read(self, ids: pa.Array, *, wanted: bool) -> Iterator[pa.Table]:
        """Read them in their order.

        Raises:
            InputError: the file is broken.
        """
        try:
            yield from self._tables(ids, wanted=wanted)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path}: can't be read from row {self.first} on ({one_line(error)})") from error

    def _tables(self, ids: pa.Array, *, wanted: bool) -> Iterator[pa.Table]:
        first = self.first
        with self.filesystem.open_input_file(self.path) as file:
            columns = [self.image, *([self.identifier] if self.identifier else [])]
            batches = pq.ParquetFile(file).iter_batches(_AT_ONCE, row_groups=self.row_groups, columns=columns)
            for batch in batches:
                names = self._ids(batch, first)
                first += len(batch)
                is_chosen = _is_chosen(names, ids, wanted=wanted)
                yield _column_table(names.filter(is_chosen), batch.column(self.image).filter(is_chosen))

    def _ids(self, batch: pa.RecordBatch, first: int) -> pa.Array:
        if self.identifier is not None:
            return batch.column(self.identifier).cast(pa.string())
        return pa.array([f"{self.name}#{row}" for row in range(first, first + len(batch))], pa.string())


def _parquet(
    filesystem: fs.FileSystem,
    root: str,
    files: Sequence[fs.FileInfo],
    image: str,
    identifier: str | None,
    identity: str,
) -> Source:
    shards: list[Shard] = []
    schema = pq.read_schema(files[0].path, filesystem=filesystem)
    if identifier is None and "id" in schema.names:
        identifier = "id"
    for file in files:
        found = pq.read_metadata(file.path, filesystem=filesystem)
        _check_columns(file.path, found.schema.to_arrow_schema(), schema, image, identifier)
        name = posixpath.relpath(file.path, root)
        shards += [ParquetShard(filesystem, file.path, name, *part, image, identifier) for part in _row_groups(found)]
    if not shards:
        raise InputError(f"{root}: no rows there")
    if identifier is not None:
        _check_ids(filesystem, [file.path for file in files], identifier)
    return Source("parquet", encoded=_is_encoded(schema.field(image).type), shards=shards, identity=identity)


def _check_columns(path: str, found: pa.Schema, first: pa.Schema, image: str, identifier: str | None) -> None:
    for column in [image, *([identifier] if identifier else [])]:
        if column not in found.names:
            raise InputError(f"{path}: no column {column}; there are {', '.join(found.names)}")
        if found.field(column).type != first.field(column).type:
            raise InputError(f"{path}: the type of column {column} is another than in the first file")
    kind = found.field(image).type
    if not (_is_encoded(kind) or _is_array(kind)):
        raise InputError(f"{path}: column {image} must have encoded images or lists of numbers, got {kind}")
    if identifier is not None and not (
        pa.types.is_string(kind := found.field(identifier).type)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
    ):
        raise InputError(f"{path}: column {identifier} must have texts or whole numbers for ids, got {kind}")


def _is_encoded(kind: pa.DataType) -> bool:
    """Whether a column has image files: bytes, or bytes beside a path as Hugging Face's data sets do."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_encoded(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_array(kind: pa.DataType) -> bool:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return True
    return False


def _row_groups(found: pq.FileMetaData) -> Iterator[tuple[list[int], int, int]]:
    """Yield numbers of neighbouring row groups, the first one's first row, and the rows of all."""
    groups: list[int] = []
    first = rows = 0
    for group in range(found.num_row_groups):
        groups.append(group)
        rows += found.row_group(group).num_rows
        if rows >= SHARD or group == found.num_row_groups - 1:
            if rows:
                yield groups, first, rows
            groups, first, rows = [], first + rows, 0


def _check_ids(filesystem: fs.FileSystem, paths: Sequence[str], identifier: str) -> None:
    twice = find_twice(filesystem, paths, identifier)
    if twice is not None:
        raise InputError(f"column {identifier} has {twice!r} more than once: every image needs an id of its own")


def find_twice(filesystem: fs.FileSystem, paths: Sequence[str], column: str) -> str | None:
    """Find a value that a column of Parquet files has more than once; None if there is none.

    Takes 8 bytes of memory for each row.

    Raises:
        InputError: a value is missing.
    """
    hashes = np.concatenate([hash_array(values) for values in _values(filesystem, paths, column)])
    hashes.sort()
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    seen: set[str] = set()
    for values in _values(filesystem, paths, column) if len(repeated) else ():
        for value in values[np.isin(hash_array(values), repeated)]:
            if value in seen:
                return str(value)
            seen.add(value)
    return None


def _values(filesystem: fs.FileSystem, paths: Sequence[str], column: str) -> Iterator[Any]:
    for path in paths:
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
                values = batch.column(0).cast(pa.string())
                if values.null_count:
                    raise InputError(f"{path}: column {column} is empty in a row: every image needs an id")
                yield values.to_numpy(zero_copy_only=False)


def _is_chosen(names: pa.Array, ids: pa.Array, *, wanted: bool) -> pa.Array:
    is_in = pc.is_in(names, value_set=ids)
    return is_in if wanted else pc.invert(is_in)


def _pixel_table(ids: pa.Array, data: bytes) -> pa.Table:
    """Make a table of arrays that lie one after the other."""
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(_PIXELS), len(ids), [None, pa.py_buffer(data)])
    return pa.table([ids, images.cast(pa.binary()), pa.nulls(len(ids), pa.string())], schema=IMAGES)


def _column_table(ids: pa.Array, column: pa.Array) -> pa.Table:
    """Make a table of a column with images in one of the ways that are known."""
    if pa.types.is_struct(column.type):
        column = column.field("bytes")  # what lies below a missing value is missing too
    if _is_array(column.type):
        return _array_table(ids, column)
    images = column.cast(pa.binary())
    errors = pa.array(pc.if_else(images.is_null(), _MISSING, pa.scalar(None, pa.string())))
    return pa.table([ids, images, errors], schema=IMAGES)


def _array_table(ids: pa.Array, column: pa.Array) -> pa.Table:
    """Make a table of lists of numbers: whole ones of 0..255, or others of 0..1."""
    unit_range = pa.types.is_floating(_leaf(column.type))
    top = 1 if unit_range else 255
    values_BP = _regular(column)
    if values_BP is not None and bool(((values_BP >= 0) & (values_BP <= top)).all()):
        return _pixel_table(ids, np.rint(values_BP.astype(np.float64) * (255 / top)).astype(np.uint8).tobytes())
    images: list[bytes | None] = []
    errors: list[str | None] = []
    for values in column.to_pylist():
        try:
            images.append(array_image(values, unit_range=unit_range).pixels.tobytes())
            errors.append(None)
        except ImageError as error:
            images.append(None)
            errors.append(f"invalid-image: {error}")
    return pa.table([ids, images, errors], schema=IMAGES)


def _leaf(kind: pa.DataType) -> pa.DataType:
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind


def _regular(column: pa.Array) -> np.ndarray | None:
    """Numbers of lists that all have the shape of an image, (B, 784); None if any has not."""
    count, sides = len(column), []
    while hasattr(column.type, "value_type"):
        lengths = pc.list_value_length(column)
        if column.null_count or pc.count_distinct(lengths).as_py() != 1:
            return None
        sides.append(lengths[0].as_py())
        column = column.flatten()
    if column.null_count or sides not in ([SIDE, SIDE], [_PIXELS]):
        return None
    numbers: np.ndarray = column.to_numpy(zero_copy_only=False).reshape(count, _PIXELS)
    return numbers


def _file_shards(filesystem: fs.FileSystem, root: str, files: Sequence[fs.FileInfo], max_bytes: int) -> list[FileShard]:
    step = _shard_size(len(files))
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
