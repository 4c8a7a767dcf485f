"""The progress of a run, computed from the written parts, so that it is also correct after a crash."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from service.bulk.output import Output

_SECONDS = 1.0  # between updates of the progress bar
_SECONDS_PLAIN = 10.0  # between lines if standard error is not a terminal


@contextmanager
def show_progress(output: Output, count: int) -> Iterator[None]:
    """Show rows, rate, remaining time, errors and abstentions on standard error until the block ends."""
    console = Console(stderr=True, highlight=False)
    counter = _Counter(output, count)
    counter.count()
    bar = Progress(BarColumn(20), TextColumn("{task.description}"), console=console, disable=not console.is_terminal)
    task = bar.add_task(counter.describe(), total=count, completed=counter.rows)

    def show() -> None:
        counter.count()
        bar.update(task, completed=counter.rows, description=counter.describe())
        if not console.is_terminal:
            console.print(counter.describe(), soft_wrap=True)

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS if console.is_terminal else _SECONDS_PLAIN):
            show()

    watcher = threading.Thread(target=watch)
    with bar:
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            show()


class _Counter:
    """Counts rows, errors and abstentions of the complete parts; reads each part once."""

    def __init__(self, output: Output, total: int) -> None:
        self._output, self._total = output, total
        self._seen: set[str] = set()
        self.rows = self._errors = self._abstained = 0
        self._start: tuple[float, int] | None = None  # time and rows at the first complete part, to compute the rate

    def count(self) -> None:
        before = self.rows
        for stem in self._output.committed():
            if stem not in self._seen:
                self._seen.add(stem)
                columns = ["error", "abstain"]
                table = pq.read_table(self._output.part(stem), columns=columns, filesystem=self._output.filesystem)
                self.rows += len(table)
                self._errors += len(table) - table.column("error").null_count
                self._abstained += table.column("abstain").to_pylist().count(True)
        if self.rows > before and self._start is None:
            self._start = time.monotonic(), self.rows

    def describe(self) -> str:
        parts = [f"{self.rows:,} of {self._total:,}", *self._pace()]
        return ", ".join([*parts, f"{self._errors:,} errors", f"{self._abstained:,} abstained"])

    def _pace(self) -> list[str]:
        since, rows = self._start or (0.0, self.rows)
        if self.rows == rows:
            return []
        rate = (self.rows - rows) / (time.monotonic() - since)
        left = timedelta(seconds=round((self._total - self.rows) / rate))
        return [f"{rate:,.0f} a second", f"{left} left"]
