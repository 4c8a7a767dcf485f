"""Merges the metrics files of dead workers into one set of files.

The Prometheus client writes a file for each process and kind of metric, and reads all files at each scrape. Merging
keeps the counts of dead workers, so that counters never fall, and keeps the number of files small.
"""

import fcntl
import json
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from model.artifact import write_atomically
from service.monitoring.logs import LOGGER
from service.monitoring.prediction_log import is_alive
from service.monitoring.prometheus_internals import read_file, write_file

KINDS = ("counter", "histogram")  # live gauges of dead workers are dropped
_LOCK, _PLAN = "merge.lock", "merge.json"
_FILE = re.compile(r"(counter|histogram|gauge_live[a-z]+)_([0-9]+)\.db")
_MERGED_PID = 0  # process id in the names of the merged files
_CORRUPT = (struct.error, ValueError, RuntimeError, IndexError)


def finish_merge(folder: Path) -> None:
    """Wait for a running merge or finish a killed one, before this process opens its own files.

    This process may have the process id of a dead worker, whose files the merge removes.
    """
    with _locked(folder):
        pass


@contextmanager
def merged(folder: Path) -> Iterator[list[str]]:
    """Merge the files of dead workers, and yield the files to read.

    A lock excludes other processes until the end. The next merge finishes a killed one: a merge writes its plan before
    it replaces or removes any file.

    Args:
        folder: folder shared by all workers of the server.
    """
    with _locked(folder):
        dead = sorted(path for path in folder.glob("*.db") if _is_dead(path))
        if dead:
            for kind in KINDS:
                _prepare(folder, kind, [path for path in dead if path.name.startswith(kind)])
            write_atomically(folder / _PLAN, json.dumps([path.name for path in dead]).encode())
            _carry_out(folder)
        yield [str(path) for path in sorted(folder.glob("*.db")) if _is_readable(path)]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock, after finishing a merge that another process left unfinished."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it if this process is killed
        _carry_out(folder)
        yield


def _is_dead(path: Path) -> bool:
    match = _FILE.fullmatch(path.name)
    return match is not None and int(match[2]) != _MERGED_PID and not is_alive(int(match[2]))


def _merged_file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}_{_MERGED_PID}.db"


def _prepared_file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.prepared"


def _prepare(folder: Path, kind: str, dead: list[Path]) -> None:
    """Write the sums of the current merged file and the dead workers' files to a new file."""
    sums: dict[str, float] = {}
    for path in (_merged_file(folder, kind), *dead):
        for key, value in _values(path):
            sums[key] = sums.get(key, 0.0) + value
    prepared = _prepared_file(folder, kind)
    prepared.unlink(missing_ok=True)
    write_file(prepared, sums)


def _values(path: Path) -> Sequence[tuple[str, float]]:
    """Values of a file; none if the file is missing or corrupt."""
    try:
        return _read(path)
    except FileNotFoundError:
        return []
    except _CORRUPT as error:
        LOGGER.warning("metrics file passed over", extra={"fields": {"file": path.name, "reason": str(error)}})
        return []


def _read(path: Path) -> Sequence[tuple[str, float]]:
    """Read keys (JSON) and values of a file; raises one of `_CORRUPT`."""
    values = read_file(path)
    for key, _ in values:
        json.loads(key)
    return values


def _carry_out(folder: Path) -> None:
    """Execute the plan, if there is one; steps that were already executed are skipped."""
    plan = folder / _PLAN
    with suppress(FileNotFoundError):
        names = json.loads(plan.read_text())
        for kind in KINDS:
            with suppress(FileNotFoundError):
                _prepared_file(folder, kind).replace(_merged_file(folder, kind))
        for name in names:
            (folder / name).unlink(missing_ok=True)
        plan.unlink()


def _is_readable(path: Path) -> bool:
    """Whether a file can be read; a new worker's file is empty at first."""
    try:
        _read(path)
    except (FileNotFoundError, *_CORRUPT):
        return False
    return True
