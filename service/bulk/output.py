"""The output folder: either complete, with the marker _SUCCESS, or without any files that readers use.

    _job.json                 what determines the rows: model, parameters, input
    _unfinished/parts         Parquet files, written in parallel by Ray Data
    _unfinished/checkpoint    ids of each complete part, also written by Ray Data
    *.parquet, _SUCCESS       after the end of the run

Readers of Parquet data sets ignore names that start with _.
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
from service.bulk.inputs.parquet import find_duplicate
from service.bulk.inputs.source import locate, one_line
from service.bulk.ray_internals import checkpoint_file, committed_part, is_pending

JOB, SUCCESS, SUMMARY = "_job.json", "_SUCCESS", "_summary.json"
PARTS, CHECKPOINT = "_unfinished/parts", "_unfinished/checkpoint"
_LOCK = "_unfinished/lock"


class OutputError(ValueError):
    """An output folder that can't or must not be written to; the message has the reason in one line."""


class Output:
    """The output folder, on any filesystem.

    Args:
        where: path or URL.

    Raises:
        InputError: no such filesystem.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.filesystem, self.path = locate(where)

    def at(self, name: str) -> str:
        """Path of a name in the folder."""
        return posixpath.join(self.path, name)

    @property
    def is_finished(self) -> bool:
        """Whether the folder is complete."""
        return self._is_file(SUCCESS)

    def begin(self, job: Mapping[str, Any], *, resume: bool) -> None:
        """Prepare an empty folder, or continue one with the same job; a finished folder stays unchanged.

        Args:
            job: everything that determines the rows.
            resume: whether the folder may already have this job.

        Raises:
            OutputError: the folder has other contents, or it can't be written to.
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
        """Lock a local folder against other runs; the lock also ends with the process.

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
            previous = json.loads(stream.read())
        changed = [name for name in sorted({*job, *previous}) if job.get(name) != previous.get(name)]
        if changed:
            differences = "; ".join(f"{name} was {previous.get(name)}, is {job.get(name)}" for name in changed)
            raise OutputError(f"{self.where}: has another job ({differences}): choose another folder")

    def committed(self) -> list[str]:
        """Stems of the names of complete parts."""
        return [part for name in self._names(CHECKPOINT) if (part := committed_part(name)) is not None]

    def part(self, stem: str) -> str:
        """Path of a complete part, while the job runs."""
        return self.at(f"{PARTS}/{next(name for name in self._names(PARTS) if name.startswith(stem))}")

    def done(self) -> pa.Array:
        """Ids of all rows in complete parts."""
        paths = [self.at(f"{CHECKPOINT}/{checkpoint_file(stem)}") for stem in self.committed()]
        columns = [pq.read_table(path, columns=["id"], filesystem=self.filesystem).column("id") for path in paths]
        return pa.chunked_array(columns, pa.string()).combine_chunks()

    def discard_broken(self) -> None:
        """Remove incomplete parts of a killed run."""
        stems = tuple(self.committed())
        broken = [f"{PARTS}/{name}" for name in self._names(PARTS) if not name.startswith(stems)]
        broken += [f"{CHECKPOINT}/{name}" for name in self._names(CHECKPOINT) if is_pending(name)]
        for name in broken:
            self.filesystem.delete_file(self.at(name))

    def check(self, count: int) -> None:
        """Check that every image has exactly one row.

        Raises:
            OutputError: rows are missing or repeated.
        """
        paths = self.parts()
        rows = sum(pq.read_metadata(path, filesystem=self.filesystem).num_rows for path in paths)
        duplicate = find_duplicate(self.filesystem, paths, "id") if paths else None
        if rows != count or duplicate is not None:
            fault = f"{rows} rows for {count} images" if duplicate is None else f"two rows for {duplicate}"
            raise OutputError(f"{self.where}: has {fault}; it stays unfinished")

    def parts(self) -> list[str]:
        """Paths of all Parquet files, finished or not."""
        return [
            self.at(f"{folder}{name}")
            for folder in (f"{PARTS}/", "")
            for name in self._names(folder)
            if name.endswith(".parquet")
        ]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Move the parts to their final place, and write summary and marker."""
        for name in self._names(PARTS):
            self.filesystem.move(self.at(f"{PARTS}/{name}"), self.at(name))
        self.put(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        self.put(SUCCESS, b"")
        self.filesystem.delete_dir(self.at(PARTS.partition("/")[0]))

    def batches(self, columns: Iterable[str]) -> Iterator[pa.RecordBatch]:
        """Read columns of all rows, in batches."""
        for path in self.parts():
            with self.filesystem.open_input_file(path) as file:
                yield from pq.ParquetFile(file).iter_batches(columns=list(columns))

    def put(self, name: str, data: bytes) -> None:
        """Write a small file; on a local filesystem, atomically."""
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
