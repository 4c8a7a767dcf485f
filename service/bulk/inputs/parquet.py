"""Parquet data sets."""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.util import hash_array
from pyarrow import fs

from model.input_spec import InputSpec
from service.bulk.inputs.source import AT_ONCE, SHARD, InputError, Shard, Source, one_line, select
from service.bulk.inputs.tables import column_table, is_array, is_encoded


@dataclass(frozen=True)
class ParquetShard:
    """Consecutive row groups of a Parquet file."""

    filesystem: fs.FileSystem
    path: str
    name: str
    row_groups: Sequence[int]
    first: int
    count: int
    image: str
    identifier: str | None
    spec: InputSpec

    def read(self, ids: pa.Array, *, include: bool) -> Iterator[pa.Table]:
        """Read the rows in order, see `Shard.read`.

        Raises:
            InputError: the file is broken.
        """
        try:
            yield from self._tables(ids, include=include)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path}: can't be read from row {self.first} on ({one_line(error)})") from error

    def _tables(self, ids: pa.Array, *, include: bool) -> Iterator[pa.Table]:
        first = self.first
        with self.filesystem.open_input_file(self.path) as file:
            columns = [self.image, *([self.identifier] if self.identifier else [])]
            batches = pq.ParquetFile(file).iter_batches(AT_ONCE, row_groups=self.row_groups, columns=columns)
            for batch in batches:
                names = self._ids(batch, first)
                first += len(batch)
                selected = select(names, ids, include=include)
                yield column_table(names.filter(selected), batch.column(self.image).filter(selected), self.spec)

    def _ids(self, batch: pa.RecordBatch, first: int) -> pa.Array:
        if self.identifier is not None:
            return batch.column(self.identifier).cast(pa.string())
        return pa.array([f"{self.name}#{row}" for row in range(first, first + len(batch))], pa.string())


def parquet_source(
    filesystem: fs.FileSystem,
    root: str,
    files: Sequence[fs.FileInfo],
    image: str,
    identifier: str | None,
    identity: str,
    spec: InputSpec,
) -> Source:
    """Make a source from Parquet files, after checking their columns and ids.

    Raises:
        InputError: a column or an id is missing, a column has another type, or ids are not unique.
    """
    shards: list[Shard] = []
    schema = pq.read_schema(files[0].path, filesystem=filesystem)
    if identifier is None and "id" in schema.names:
        identifier = "id"
    for file in files:
        metadata = pq.read_metadata(file.path, filesystem=filesystem)
        _check_columns(file.path, metadata.schema.to_arrow_schema(), schema, image, identifier)
        name = posixpath.relpath(file.path, root)
        shards += [
            ParquetShard(filesystem, file.path, name, *part, image, identifier, spec) for part in _row_groups(metadata)
        ]
    if not shards:
        raise InputError(f"{root}: has no rows")
    if identifier is not None:
        _check_ids(filesystem, [file.path for file in files], identifier)
    return Source("parquet", encoded=is_encoded(schema.field(image).type), shards=shards, identity=identity)


def _check_columns(path: str, schema: pa.Schema, first: pa.Schema, image: str, identifier: str | None) -> None:
    for column in [image, *([identifier] if identifier else [])]:
        if column not in schema.names:
            raise InputError(f"{path}: no column {column}; there are {', '.join(schema.names)}")
        if schema.field(column).type != first.field(column).type:
            raise InputError(f"{path}: the type of column {column} differs from the first file")
    kind = schema.field(image).type
    if not (is_encoded(kind) or is_array(kind)):
        raise InputError(f"{path}: column {image} must have encoded images or lists of numbers, got {kind}")
    if identifier is not None and not (
        pa.types.is_string(kind := schema.field(identifier).type)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
    ):
        raise InputError(f"{path}: column {identifier} must have strings or integers as ids, got {kind}")


def _row_groups(metadata: pq.FileMetaData) -> Iterator[tuple[list[int], int, int]]:
    """Yield indices of consecutive row groups, the index of their first row, and their number of rows."""
    groups: list[int] = []
    first = rows = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= SHARD or group == metadata.num_row_groups - 1:
            if rows:
                yield groups, first, rows
            groups, first, rows = [], first + rows, 0


def _check_ids(filesystem: fs.FileSystem, paths: Sequence[str], identifier: str) -> None:
    duplicate = find_duplicate(filesystem, paths, identifier)
    if duplicate is not None:
        raise InputError(f"column {identifier} has {duplicate!r} more than once: every image needs its own id")


def find_duplicate(filesystem: fs.FileSystem, paths: Sequence[str], column: str) -> str | None:
    """Find a value that occurs more than once in a column of Parquet files; None if all are distinct.

    Needs 8 bytes of memory for each row.

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
                    raise InputError(f"{path}: column {column} has an empty value: every image needs an id")
                yield values.to_numpy(zero_copy_only=False)
