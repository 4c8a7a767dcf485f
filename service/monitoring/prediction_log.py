"""The recent predictions of all workers, in memory-mapped files that all workers share, for drift and feedback."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.monitoring.logs import LOGGER

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
_PROBABILITIES = "probabilities-"


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
        self._probs_RC = np.zeros((size, 0), np.float32) if folder is None else self._map_probabilities(_own_suffix())

    def add(self, record: Record, probs_C: Sequence[float] = ()) -> None:
        """Add a prediction, in place of the oldest one.

        Args:
            record: the prediction.
            probs_C: its calibrated class probabilities; empty if it has none.
        """
        place = self._next % self._size
        if len(probs_C) not in {0, self._probs_RC.shape[1]}:
            self._probs_RC = self._make_probabilities(len(probs_C))
        if self._probs_RC.shape[1]:
            self._probs_RC[place] = probs_C if len(probs_C) else 0
        self._own[place] = record
        self._next += 1

    def newest(self, condition: Callable[[Records], np.ndarray], count: int | None = None) -> Records:
        """The newest predictions of all workers that satisfy a condition, the oldest first.

        Args:
            condition: maps records to a boolean mask.
            count: maximum number of predictions; None for all.
        """
        parts = []
        for ring, _ in self._rings():
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
        for ring, _ in self._rings():
            indices = np.flatnonzero(condition(ring) & (ring["time"] > 0))
            ring["outcome"][indices] = np.where(ring["predicted"][indices] == true_class, RIGHT, WRONG)
            outcomes.append(ring["outcome"][indices])
        return np.concatenate(outcomes)

    def with_probabilities(
        self, condition: Callable[[Records], np.ndarray], classes: int
    ) -> list[tuple[Records, np.ndarray]]:
        """All predictions that satisfy a condition and have calibrated probabilities, the oldest first.

        Args:
            condition: maps records to a boolean mask.
            classes: number of classes.

        Returns:
            Each record with its probabilities, float64, (C,).
        """
        found: list[tuple[Records, np.ndarray]] = []
        for ring, probs_RC in self._rings():
            if probs_RC.shape[1] != classes:
                continue
            places = np.flatnonzero(condition(ring) & (ring["time"] > 0))
            found += [(ring[place].copy(), probs_RC[place].astype(np.float64)) for place in places]
        return sorted((pair for pair in found if pair[1].any()), key=lambda pair: float(pair[0]["time"]))

    def _rings(self) -> Iterator[tuple[Records, np.ndarray]]:
        """Records of each worker, and their probabilities (R, C), with C = 0 where none are kept."""
        yield self._own, self._probs_RC
        for path in [] if self._folder is None else self._folder.glob(f"{_PREFIX}*"):
            if path.name != _PREFIX + _own_suffix():
                with contextlib.suppress(FileNotFoundError):  # another worker has just taken it over
                    yield self._map(path), self._map_probabilities(path.name.removeprefix(_PREFIX))

    def _map(self, path: Path) -> Records:
        return np.asarray(np.memmap(path, RECORD_TYPE, mode="r+", shape=(self._size,)))

    def _map_probabilities(self, suffix: str) -> np.ndarray:
        """Probabilities beside the records of a worker; without classes if its file is missing or of another size."""
        path = (self._folder or Path()) / f"{_PROBABILITIES}{suffix}"
        with contextlib.suppress(FileNotFoundError):
            classes, rest = divmod(path.stat().st_size, self._size * np.dtype(np.float32).itemsize)
            if classes and not rest:
                return np.asarray(np.memmap(path, np.float32, mode="r+", shape=(self._size, classes)))
        return np.zeros((self._size, 0), np.float32)

    def _make_probabilities(self, classes: int) -> np.ndarray:
        """Start to keep the probabilities of this many classes, which are another number than before."""
        if self._folder is None:
            return np.zeros((self._size, classes), np.float32)
        own = self._folder / f"{_PROBABILITIES}{_own_suffix()}"
        try:
            _write_zeros(own, self._size * classes * np.dtype(np.float32).itemsize)
        except OSError as error:
            LOGGER.error("probabilities are not kept for feedback", extra={"fields": {"reason": str(error)}})
            return np.zeros((self._size, classes), np.float32)  # of this worker only
        return self._map_probabilities(_own_suffix())

    def _claim(self, folder: Path) -> Path:
        """Take over a dead worker's file, or create one."""
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / (_PREFIX + _own_suffix())
        for path in folder.glob(f"{_PREFIX}*"):
            suffix = path.name.removeprefix(_PREFIX)
            if not own.exists() and not is_alive(int(suffix)):
                with contextlib.suppress(FileNotFoundError):  # another worker was faster, or there are no probabilities
                    path.rename(own)
                    (folder / f"{_PROBABILITIES}{suffix}").rename(folder / f"{_PROBABILITIES}{_own_suffix()}")
        if not own.exists() or own.stat().st_size != self._size * RECORD_TYPE.itemsize:
            _write_zeros(own, self._size * RECORD_TYPE.itemsize)
        return own


def _own_suffix() -> str:
    return str(os.getpid())


def _write_zeros(path: Path, size: int) -> None:
    """Create or replace a file at once; all of it is written, as a full disk would kill who writes to it mapped."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_bytes(bytes(size))
    fresh.replace(path)


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
