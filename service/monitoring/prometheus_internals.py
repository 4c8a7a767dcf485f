"""What we use of Prometheus' client that is not public: all of it stands here.

pyproject.toml bounds the client's version; tests/unit/test_internals.py fails when one of these changes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from prometheus_client import Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector


class DeferredHistogram(Histogram):
    """A histogram that notes values and counts them later, many at once."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self.noted: list[float] = []

    def count(self) -> None:
        """Count what was noted, none of it NaN; other threads may go on noting."""
        if values := _taken(self.noted):
            places = np.searchsorted(self._upper_bounds, values, side="left")
            for bucket, count in zip(self._buckets, np.bincount(places).tolist(), strict=False):
                if count:
                    bucket.inc(count)
            self._sum.inc(math.fsum(values))


class DeferredCounter(Counter):
    """A counter that notes amounts and adds them later, many at once."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self.noted: list[float] = []

    def count(self) -> None:
        """Count what was noted; other threads may go on noting."""
        if amounts := _taken(self.noted):
            self.inc(sum(amounts))


def _taken(noted: list[float]) -> list[float]:
    values = noted[:]
    del noted[: len(values)]
    return values


def merge_files(paths: Iterable[str]) -> Iterable[Metric]:
    """Sum up what the files of several processes hold."""
    found: Iterable[Metric] = MultiProcessCollector.merge(paths)  # type: ignore[no-untyped-call]
    return found


def read_file(path: Path) -> Sequence[tuple[str, float]]:
    """Keys, which are JSON, and values of a process's file.

    Raises:
        FileNotFoundError: no such file.
        struct.error, ValueError, RuntimeError, IndexError: it is not whole.
    """
    values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return [(key, value) for key, value, *_ in values]


def write_file(path: Path, values: Mapping[str, float]) -> None:
    """Write such a file, which must not exist."""
    with closing(MmapedDict(str(path))) as written:  # type: ignore[no-untyped-call]
        for key, value in values.items():
            written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
