"""Where rows go: a folder that is whole, with a marker that says so, or holds nothing that a reader takes for it.

    _job.json                 what makes these rows: model, parameters, input
    _unfinished/parts         Parquet files, written by many at once
    _unfinished/checkpoint    for each of them that is whole its ids; Ray Data writes both
    *.parquet, _SUCCESS       in the end

Names that start with _ are left out by whatever reads Parquet data sets.
"""

import fcntl
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from model.artifact import write_atomically
from service.bulk.inputs.parquet import find_twice
from service.bulk.inputs.source import locate, one_line
from service.bulk.ray_internals import checkpoint_file, committed_part, is_pending

JOB, SUCCESS, SUMMARY = "_job.json", "_SUCCESS", "_summary.json"
PARTS, CHECKPOINT = "_unfinished/parts", "_unfinished/checkpoint"
_LOCK = "_unfinished/lock"


class OutputError(ValueError):
    """An output that can't be written to, or must not; one line says why."""


class Output:
    """The folder, on any filesystem.

    Args:
        where: path or URL.

    Raises:
        InputError: no such filesystem.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.filesystem, self.path = locate(where)

    def at(self, name: str) -> str:
        """Path of what has a name in it."""
        return posixpath.join(self.path, name)

    @property
    def is_finished(self) -> bool:
        """Whether all rows are there."""
        return self._is_file(SUCCESS)

    def begin(self, job: Mapping[str, Any], *, resume: bool) -> None:
        """Take possession of an empty folder, or of one in which the same job was begun; leave a finished one as it is.

        Raises:
            OutputError: something else is there, or it can't be written to.
        """
        try:
            if self._is_file(JOB):
                self._compare(job, resume=resume)
                if self.is_finished:
                    return
            elif self._names(""):
                raise OutputError(f"{self.where}: is not empty: choose another folder")
            for name in (PARTS, CHECKPOINT):
                self.filesystem.create_dir(self.at(name), recursive=True)
            self.put(JOB, (json.dumps(job, indent=2) + "\n").encode())
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{self.where}: can't be written to ({one_line(error)})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs away from a local folder until the end, however this one ends.

        Raises:
            OutputError: another run is writing to it.
        """
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            yield
            return
        with Path(self.at(_LOCK)).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(f"{self.where}: another run is writing to it") from error
            yield

    def _compare(self, job: Mapping[str, Any], *, resume: bool) -> None:
        if not resume:
            state = "a finished run" if self.is_finished else "an unfinished run, which --resume continues"
            raise OutputError(f"{self.where}: has {state}: choose another folder")
        with self.filesystem.open_input_stream(self.at(JOB)) as stream:
            before = json.loads(stream.read())
        changed = [name for name in sorted({*job, *before}) if job.get(name) != before.get(name)]
        if changed:
            differences = "; ".join(f"{name} was {before.get(name)}, is {job.get(name)}" for name in changed)
            raise OutputError(f"{self.where}: was begun by another job ({differences}): choose another folder")

    def committed(self) -> list[str]:
        """Stems of the parts that are whole."""
        return [part for name in self._names(CHECKPOINT) if (part := committed_part(name)) is not None]

    def part(self, stem: str) -> str:
        """Path of a part that is whole, while the job runs."""
        return self.at(f"{PARTS}/{next(name for name in self._names(PARTS) if name.startswith(stem))}")

    def done(self) -> pa.Array:
        """Ids of all rows in parts that are whole."""
        paths = [self.at(f"{CHECKPOINT}/{checkpoint_file(stem)}") for stem in self.committed()]
        columns = [pq.read_table(path, columns=["id"], filesystem=self.filesystem).column("id") for path in paths]
        return pa.chunked_array(columns, pa.string()).combine_chunks()

    def discard_broken(self) -> None:
        """Remove what a killed run left of parts that are not whole."""
        stems = tuple(self.committed())
        broken = [f"{PARTS}/{name}" for name in self._names(PARTS) if not name.startswith(stems)]
        broken += [f"{CHECKPOINT}/{name}" for name in self._names(CHECKPOINT) if is_pending(name)]
        for name in broken:
            self.filesystem.delete_file(self.at(name))

    def check(self, count: int) -> None:
        """See that every image has its row, once.

        Raises:
            OutputError: it hasn't.
        """
        paths = self.parts()
        rows = sum(pq.read_metadata(path, filesystem=self.filesystem).num_rows for path in paths)
        twice = find_twice(self.filesystem, paths, "id") if paths else None
        if rows != count or twice is not None:
            what = f"{rows} rows for {count} images" if twice is None else f"two rows for {twice}"
            raise OutputError(f"{self.where}: has {what}; it stays unfinished")

    def parts(self) -> list[str]:
        """Paths of all Parquet files, wherever they are by now."""
        return [
            self.at(f"{folder}{name}")
            for folder in (f"{PARTS}/", "")
            for name in self._names(folder)
            if name.endswith(".parquet")
        ]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Bring the parts to where they are read, and say that all are there."""
        for name in self._names(PARTS):
            self.filesystem.move(self.at(f"{PARTS}/{name}"), self.at(name))
        self.put(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        self.put(SUCCESS, b"")
        self.filesystem.delete_dir(self.at(PARTS.partition("/")[0]))

    def batches(self, columns: Iterable[str]) -> Iterator[pa.RecordBatch]:
        """Read columns of all rows, a few at a time."""
        for path in self.parts():
            with self.filesystem.open_input_file(path) as file:
                yield from pq.ParquetFile(file).iter_batches(columns=list(columns))

    def put(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        if isinstance(self.filesystem, fs.LocalFileSystem):
            write_atomically(Path(self.at(name)), data)
            return
        with self.filesystem.open_output_stream(self.at(name)) as stream:
            stream.write(data)

    def _is_file(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(self.at(name)).type is fs.FileType.File)

    def _names(self, folder: str) -> list[str]:
        selector = fs.FileSelector(self.at(folder), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))
