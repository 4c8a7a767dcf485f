"""The source of bulk scoring: all images of an input, divided into shards that are read independently."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

# Schema of read images: an encoded file or the bytes of the network's pixels, or the error that prevented reading.
IMAGES = pa.schema([("id", pa.string()), ("image", pa.binary()), ("error", pa.string())])
SHARD = 4096  # images of a shard, unless the number of shards would exceed its maximum
AT_ONCE = 1024  # maximum number of images that are read at once
_MAX_SHARDS = 1000


class InputError(ValueError):
    """An input that can't be scored; the message has the reason in one line."""


class Shard(Protocol):
    """A part of the input, read by one task on any machine."""

    @property
    def filesystem(self) -> fs.FileSystem:
        """Filesystem of the input."""

    @property
    def count(self) -> int:
        """Number of images, including those that are done."""

    def read(self, ids: pa.Array, *, include: bool) -> Iterator[pa.Table]:
        """Read images by their ids.

        Args:
            ids: ids of images.
            include: whether to read the images with these ids, instead of all others.

        Yields:
            Tables with schema `IMAGES`.
        """


@dataclass(frozen=True)
class Source:
    """All images of an input.

    Attributes:
        kind: "files", "parquet", "npy" or "idx".
        encoded: whether the images are image files instead of arrays.
        shards: the shards; together they have every image once.
        identity: hash of the files' names, sizes and modification times; it changes with the input.
        skipped: number of other files in the folder.
    """

    kind: str
    encoded: bool
    shards: Sequence[Shard]
    identity: str
    skipped: int = 0

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(shard.count for shard in self.shards)


def locate(where: str) -> tuple[fs.FileSystem, str]:
    """Find filesystem and path of a local path or a URL.

    Raises:
        InputError: no such filesystem.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", where):
        try:
            location: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(where)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{where}: can't be opened ({error})") from error
        return location
    return fs.LocalFileSystem(), str(Path(where).expanduser().absolute())


def one_line(error: BaseException) -> str:
    """Message of an error in one line, shortened."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def shard_size(count: int) -> int:
    """Number of images in a shard, such that all shards have about the same size."""
    shards = min(-(-count // SHARD), _MAX_SHARDS)
    return -(-count // max(shards, 1))  # equal sizes, so that all workers finish at about the same time


def select(names: pa.Array, ids: pa.Array, *, include: bool) -> pa.Array:
    """Boolean mask of the names that are among the ids, or with `include=False`, of the others."""
    is_in = pc.is_in(names, value_set=ids)
    return is_in if include else pc.invert(is_in)
