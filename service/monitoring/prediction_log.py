"""The recent predictions of all workers, in memory-mapped files that all workers share, for drift and feedback."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

UNKNOWN, WRONG, RIGHT = -1, 0, 1

RECORD_TYPE = np.dtype(
    [
        ("time", "<f8"),  # time of the prediction, seconds since 1970; 0 for an empty record
        ("request", "<u8"),  # keys, see `key`
        ("image", "<u8"),
        ("model", "<u8"),
        ("classes", "<u8"),  # key of the names of the model's classes, see `classes_key`
        ("predictive_entropy", "<f4"),  # nats
        ("mutual_information", "<f4"),  # nats; 0 in eval mode
        ("confidence", "<f4"),  # calibrated, if the model is
        ("samples", "<u2"),
        ("predicted", "<u2"),  # index of the predicted class
        ("estimator", "u1"),  # index in predictor.ESTIMATORS
        ("outcome", "i1"),  # UNKNOWN until feedback has the true class
    ]
)
Records = np.ndarray[Any, np.dtype[np.void]]

_PREFIX = "predictions-"


def key(text: str) -> int:
    """Hash of a text, 64 bits."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def classes_key(classes: Sequence[str]) -> int:
    """Hash of the names of classes in their order, 64 bits: an index means the same in models that share it."""
    return key("\0".join(classes))


class Record(NamedTuple):
    """A record of the log; the fields are described at `RECORD_TYPE`."""

    time: float
    request: int
    image: int
    model: int
    classes: int
    predictive_entropy: float
    mutual_information: float
    confidence: float
    samples: int
    predicted: int
    estimator: int
    outcome: int = UNKNOWN


class PredictionLog:
    """Keeps the recent predictions of this worker, and reads those of all workers.

    A new worker takes over the file of a dead one, so that no predictions are lost.

    Args:
        folder: folder shared by all workers; None to keep the predictions in this process.
        size: number of predictions that a worker keeps.

    Raises:
        OSError: the folder can't be written.
    """

    def __init__(self, folder: Path | None, size: int) -> None:
        self._folder, self._size = folder, size
        self._own = np.zeros(size, RECORD_TYPE) if folder is None else self._map(self._claim(folder))
        self._next = int(self._own["time"].argmax()) + 1

    def add(self, record: Record) -> None:
        """Add a prediction, in place of the oldest one."""
        self._own[self._next % self._size] = record
        self._next += 1

    def newest(self, condition: Callable[[Records], np.ndarray], count: int | None = None) -> Records:
        """The newest predictions of all workers that satisfy a condition, the oldest first.

        Args:
            condition: maps records to a boolean mask.
            count: maximum number of predictions; None for all.
        """
        parts = []
        for ring in self._rings():
            in_order = np.roll(np.arange(len(ring)), -1 - int(ring["time"].argmax()))
            indices = in_order[((ring["time"] > 0) & condition(ring))[in_order]]
            parts.append(ring[indices if count is None else indices[-count:]])
        records = np.concatenate(parts)
        ordered: Records = records[np.argsort(records["time"], kind="stable")]
        return ordered if count is None else ordered[-count:]

    def note_class(self, condition: Callable[[Records], np.ndarray], true_class: int) -> np.ndarray:
        """Set the outcomes of all predictions that satisfy a condition, given the index of their true class.

        Args:
            condition: maps records to a boolean mask.
            true_class: index in the classes of the model that predicted.

        Returns:
            The outcomes, each `RIGHT` or `WRONG`.
        """
        outcomes = []
        for ring in self._rings():
            indices = np.flatnonzero(condition(ring) & (ring["time"] > 0))
            ring["outcome"][indices] = np.where(ring["predicted"][indices] == true_class, RIGHT, WRONG)
            outcomes.append(ring["outcome"][indices])
        return np.concatenate(outcomes)

    def _rings(self) -> Iterator[Records]:
        yield self._own
        for path in [] if self._folder is None else self._folder.glob(f"{_PREFIX}*"):
            if path.name != _name():
                with contextlib.suppress(FileNotFoundError):  # another worker has just taken it over
                    yield self._map(path)

    def _map(self, path: Path) -> Records:
        return np.asarray(np.memmap(path, RECORD_TYPE, mode="r+", shape=(self._size,)))

    def _claim(self, folder: Path) -> Path:
        """Take over a dead worker's file, or create one."""
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / _name()
        for path in folder.glob(f"{_PREFIX}*"):
            if not own.exists() and not is_alive(int(path.name.removeprefix(_PREFIX))):
                with contextlib.suppress(FileNotFoundError):  # another worker was faster
                    path.rename(own)
        if not own.exists() or own.stat().st_size != self._size * RECORD_TYPE.itemsize:
            fresh = folder / f".{own.name}"
            fresh.write_bytes(bytes(self._size * RECORD_TYPE.itemsize))
            fresh.replace(own)
        return own


def _name() -> str:
    return f"{_PREFIX}{os.getpid()}"


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
