"""What dead workers have counted, merged into one set of files: counters never fall, and no death costs anything later.

Prometheus' client writes a file for each process and kind of metric, and reads all of them at a scrape.
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

KINDS = ("counter", "histogram")  # of live gauges nothing stays
_LOCK, _PLAN = "merge.lock", "merge.json"
_FILE = re.compile(r"(counter|histogram|gauge_live[a-z]+)_([0-9]+)\.db")
_NOBODY = 0  # the process id that the merged files have
_CORRUPT = (struct.error, ValueError, RuntimeError, IndexError)


def finish_merge(folder: Path) -> None:
    """Finish a merge, one that runs or one that was killed, before this process opens files of its own.

    It may have the process id of a dead worker, whose files the merge removes.
    """
    with _locked(folder):
        pass


@contextmanager
def merged(folder: Path) -> Iterator[list[str]]:
    """Merge the files of workers that have died, and yield the files that are to be read.

    No other process merges meanwhile. A merge that was killed is finished by the next one: what it planned is written
    before anything is replaced or removed.

    Args:
        folder: that all workers of the server share.
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
    """Let no other process merge, and finish what one of them has left."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which the kernel takes back if we are killed
        _carry_out(folder)
        yield


def _is_dead(path: Path) -> bool:
    found = _FILE.fullmatch(path.name)
    return found is not None and int(found[2]) != _NOBODY and not is_alive(int(found[2]))


def _merged_file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}_{_NOBODY}.db"


def _prepared_file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.prepared"


def _prepare(folder: Path, kind: str, dead: list[Path]) -> None:
    """Write the sums of the merged file so far and of the dead workers' beside it."""
    sums: dict[str, float] = {}
    for path in (_merged_file(folder, kind), *dead):
        for key, value in _values(path):
            sums[key] = sums.get(key, 0.0) + value
    prepared = _prepared_file(folder, kind)
    prepared.unlink(missing_ok=True)
    write_file(prepared, sums)


def _values(path: Path) -> Sequence[tuple[str, float]]:
    """What a file holds; nothing, if its process died before it was whole."""
    try:
        return _read(path)
    except FileNotFoundError:
        return []
    except _CORRUPT as error:
        LOGGER.warning("metrics file passed over", extra={"fields": {"file": path.name, "reason": str(error)}})
        return []


def _read(path: Path) -> Sequence[tuple[str, float]]:
    """Keys, which are JSON, and values of a file; raises one of `_CORRUPT`."""
    found = read_file(path)
    for key, _ in found:
        json.loads(key)
    return found


def _carry_out(folder: Path) -> None:
    """Do what is planned, as often as it takes: each step may have been done already."""
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
    """Whether a file is whole: a worker that starts makes it empty first."""
    try:
        _read(path)
    except (FileNotFoundError, *_CORRUPT):
        return False
    return True
