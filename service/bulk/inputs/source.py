"""What bulk scoring reads: all images of an input, in parts that are read independently."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

# What is read: an encoded file or the 784 bytes of an array, or why there is neither.
IMAGES = pa.schema([("id", pa.string()), ("image", pa.binary()), ("error", pa.string())])
SHARD = 4096  # images that are read, scored and written together, unless there are many millions
AT_ONCE = 1024  # rows, or fewer where they are large
_MOST_SHARDS = 1000


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


def one_line(error: BaseException) -> str:
    """What an error says, without the rest of its story."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def shard_size(count: int) -> int:
    """How many images a shard has, so that all have about the same number."""
    shards = min(-(-count // SHARD), _MOST_SHARDS)
    return -(-count // max(shards, 1))  # all alike, so that no worker waits at the end for another's


def is_chosen(names: pa.Array, ids: pa.Array, *, wanted: bool) -> pa.Array:
    """Which names are among the ids if those are wanted, else which are not."""
    is_in = pc.is_in(names, value_set=ids)
    return is_in if wanted else pc.invert(is_in)
