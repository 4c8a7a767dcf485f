"""All private parts of the Prometheus client that we use.

pyproject.toml bounds the client's version; tests/unit/test_internals.py fails if one of these parts changes.
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
    """A histogram that collects values in `pending` and counts them later, many at once."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self.pending: list[float] = []

    def count(self) -> None:
        """Count the pending values, none of which may be NaN; other threads may add values meanwhile."""
        if values := _take(self.pending):
            indices = np.searchsorted(self._upper_bounds, values, side="left")
            for bucket, count in zip(self._buckets, np.bincount(indices).tolist(), strict=False):
                if count:
                    bucket.inc(count)
            self._sum.inc(math.fsum(values))


class DeferredCounter(Counter):
    """A counter that collects amounts in `pending` and adds them later, many at once."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self.pending: list[float] = []

    def count(self) -> None:
        """Add the pending amounts; other threads may add amounts meanwhile."""
        if amounts := _take(self.pending):
            self.inc(sum(amounts))


def _take(pending: list[float]) -> list[float]:
    values = pending[:]
    del pending[: len(values)]
    return values


def merge_files(paths: Iterable[str]) -> Iterable[Metric]:
    """Merge the metrics in the files of several processes."""
    metrics: Iterable[Metric] = MultiProcessCollector.merge(paths)  # type: ignore[no-untyped-call]
    return metrics


def read_file(path: Path) -> Sequence[tuple[str, float]]:
    """Read keys (JSON) and values from a process's file.

    Raises:
        FileNotFoundError: no such file.
        struct.error, ValueError, RuntimeError, IndexError: the file is incomplete or corrupt.
    """
    values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return [(key, value) for key, value, *_ in values]


def write_file(path: Path, values: Mapping[str, float]) -> None:
    """Write keys (JSON) and values to a new file, which must not exist."""
    with closing(MmapedDict(str(path))) as written:  # type: ignore[no-untyped-call]
        for key, value in values.items():
            written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
