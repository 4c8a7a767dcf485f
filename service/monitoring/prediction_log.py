"""The newest predictions of all workers, in files that each of them maps: what drift and feedback are told from."""

import contextlib
import os
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

UNKNOWN, WRONG, RIGHT = -1, 0, 1

RECORD_TYPE = np.dtype(
    [
        ("time", "<f8"),  # of the prediction, seconds since 1970; 0 where there is none
        ("request", "<u8"),  # keys, see `key`
        ("image", "<u8"),
        ("model", "<u8"),
        ("predictive_entropy", "<f4"),  # nats
        ("mutual_information", "<f4"),  # nats; 0 in eval mode
        ("confidence", "<f4"),  # calibrated, if the model is
        ("samples", "<u2"),
        ("predicted", "<u2"),  # class
        ("estimator", "u1"),  # place in predictor.ESTIMATORS
        ("outcome", "i1"),  # UNKNOWN until somebody tells the true class
    ]
)
Records = np.ndarray[Any, np.dtype[np.void]]

_PREFIX = "predictions-"


def key(text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class Record(NamedTuple):
    """A prediction as it is kept; the names are those of `RECORD_TYPE`."""

    time: float
    request: int
    image: int
    model: int
    predictive_entropy: float
    mutual_information: float
    confidence: float
    samples: int
    predicted: int
    estimator: int
    outcome: int = UNKNOWN


class PredictionLog:
    """Keeps this worker's newest predictions, and shows those of all.

    A worker that starts takes over the file of one that is dead, so that its predictions are not lost.

    Args:
        folder: that all workers share; None to keep them in this process.
        size: how many a worker keeps.

    Raises:
        OSError: the folder can't be written.
    """

    def __init__(self, folder: Path | None, size: int) -> None:
        self._folder, self._size = folder, size
        self._own = np.zeros(size, RECORD_TYPE) if folder is None else self._map(self._claim(folder))
        self._next = int(self._own["time"].argmax()) + 1

    def add(self, record: Record) -> None:
        """Keep a prediction; the oldest one goes."""
        self._own[self._next % self._size] = record
        self._next += 1

    def newest(self, wanted: Callable[[Records], np.ndarray], count: int | None = None) -> Records:
        """Those of all workers for which a condition holds, the oldest first, and of these at most `count` newest."""
        found = []
        for ring in self._rings():
            in_order = np.roll(np.arange(len(ring)), -1 - int(ring["time"].argmax()))
            places = in_order[((ring["time"] > 0) & wanted(ring))[in_order]]
            found.append(ring[places if count is None else places[-count:]])
        together = np.concatenate(found)
        ordered: Records = together[np.argsort(together["time"], kind="stable")]
        return ordered if count is None else ordered[-count:]

    def note_class(self, field: str, value: int, true_class: int) -> np.ndarray:
        """Note the true class of all predictions whose field has a value, and return their outcomes."""
        outcomes = []
        for ring in self._rings():
            places = np.flatnonzero((ring[field] == value) & (ring["time"] > 0))
            ring["outcome"][places] = np.where(ring["predicted"][places] == true_class, RIGHT, WRONG)
            outcomes.append(ring["outcome"][places])
        return np.concatenate(outcomes)

    def _rings(self) -> Iterator[Records]:
        yield self._own
        for path in [] if self._folder is None else self._folder.glob(f"{_PREFIX}*"):
            if path.name != _name():
                with contextlib.suppress(FileNotFoundError):  # taken over this moment
                    yield self._map(path)

    def _map(self, path: Path) -> Records:
        return np.asarray(np.memmap(path, RECORD_TYPE, mode="r+", shape=(self._size,)))

    def _claim(self, folder: Path) -> Path:
        """Take over a dead worker's file, or make one."""
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
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
