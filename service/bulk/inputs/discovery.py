"""Detects the kind of an input: image files, Parquet, .npy or IDX, on any filesystem of PyArrow."""

import hashlib
import posixpath
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs

from model.input_spec import InputSpec
from service.bulk.inputs.array_files import idx_shards, npy_shards
from service.bulk.inputs.image_files import SUFFIXES, file_shards
from service.bulk.inputs.parquet import parquet_source
from service.bulk.inputs.source import InputError, Source, locate, one_line

_PARQUET = ".parquet"
_MAGIC = {b"PAR1": "parquet", b"\x93NUM": "npy", b"\x00\x00\x08\x03": "idx", b"\x1f\x8b": "idx.gz"}


def open_source(where: str, *, image: str, identifier: str | None, max_bytes: int, spec: InputSpec) -> Source:
    """Detect the kind of an input, and list its images.

    Args:
        where: path or URL of a folder or a file, or a pattern with *, ? or [].
        image: column with the images of a Parquet data set.
        identifier: column with their ids; None for "id" if it exists, else ids are made of file and row.
        max_bytes: maximum size of an image file.
        spec: the images that the network takes.

    Raises:
        InputError: nothing there, nothing to score, a column is missing, or ids are not unique.
    """
    filesystem, path = locate(where)
    try:
        root, files, skipped = _list(filesystem, path)
        if not files:
            raise InputError(f"{where}: has no images ({', '.join(SUFFIXES)}) and no {_PARQUET} files")
        kind = _kind(filesystem, files)
        identity = _identity(root, files)
        if kind == "files":
            shards = file_shards(filesystem, root, files, max_bytes)
            return Source(kind, encoded=True, shards=shards, identity=identity, skipped=skipped)
        if kind == "parquet":
            return parquet_source(filesystem, root, files, image, identifier, identity, spec)
        if len(files) > 1:
            raise InputError(f"{where}: {len(files)} files, and the first is an array: score one array file at a time")
        array = (
            npy_shards(filesystem, files[0].path, spec)
            if kind == "npy"
            else idx_shards(filesystem, files[0].path, kind, spec)
        )
        return Source(kind.partition(".")[0], encoded=False, shards=array, identity=identity)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{where}: can't be read ({one_line(error)})") from error


def _list(filesystem: fs.FileSystem, path: str) -> tuple[str, list[fs.FileInfo], int]:
    """List the folder that names are relative to, the files sorted by name, and the number of skipped files."""
    info = filesystem.get_file_info(path)
    if info.type is fs.FileType.File:
        return posixpath.dirname(path), [info], 0
    if info.type is fs.FileType.Directory:
        root = path.rstrip("/")
        listed = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        files = [file for file in listed if file.type is fs.FileType.File and not _is_hidden(file.path, root)]
    else:
        root = posixpath.dirname(re.split(r"[*?\[]", path, maxsplit=1)[0])
        matches = ArrowFSWrapper(filesystem).glob(path)
        if not matches:
            raise InputError(f"{path}: there is no such file or folder, and no file matches it as a pattern")
        files = [file for file in filesystem.get_file_info(matches) if file.type is fs.FileType.File]
        return root, sorted(files, key=lambda file: file.path), 0
    files.sort(key=lambda file: file.path)
    images = [file for file in files if file.path.lower().endswith(SUFFIXES)]
    tables = [file for file in files if file.path.endswith(_PARQUET)]
    if images and tables:
        raise InputError(f"{path}: has images and {_PARQUET} files: select the files to score by a pattern like *.png")
    return root, images or tables, len(files) - len(images or tables)


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(root) :].split("/"))


def _kind(filesystem: fs.FileSystem, files: Sequence[fs.FileInfo]) -> str:
    with filesystem.open_input_stream(files[0].path, compression=None) as stream:
        start = stream.read(4)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "files")
    if kind == "files" and len(files) == 1 and files[0].path.endswith((_PARQUET, ".npy", ".gz")):
        raise InputError(f"{files[0].path}: its content does not match its name")
    return kind


def _identity(root: str, files: Iterable[fs.FileInfo]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{posixpath.relpath(file.path, root)}\0{file.size}\0{file.mtime_ns}\n".encode())
    return digest.hexdigest()
