"""How far a run is: told from what is written, so that no crash can make it a lie."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.bulk.output import Output

_SECONDS = 1.0
_SECONDS_PLAIN = 10.0  # between the lines where no bar can be drawn


@contextmanager
def shown(output: Output, count: int) -> Iterator[None]:
    """Show rows, rate, remaining time, errors and abstentions to standard error for as long as it is open."""
    console = Console(stderr=True)
    counter = _Counter(output)
    bar = Progress(
        TextColumn("scored"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[told]}"),
        console=console,
        disable=not console.is_terminal,
    )
    counter.count()
    task = bar.add_task("", total=count, completed=counter.rows, rate="", told=counter.told())

    def show() -> None:
        counter.count()
        speed = bar.tasks[0].speed
        rate = "" if speed is None else f"{speed:,.0f}/s"
        bar.update(task, completed=counter.rows, rate=rate, told=counter.told())
        if not console.is_terminal:
            left = bar.tasks[0].time_remaining
            remaining = "" if left is None else f", {left:,.0f} s left"
            console.print(f"{counter.rows:,} of {count:,} scored, {rate or '?'}{remaining}, {counter.told()}")

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS if console.is_terminal else _SECONDS_PLAIN):
            show()

    watching = threading.Thread(target=watch)
    with bar:
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()
            show()


class _Counter:
    """Counts rows, errors and abstentions in the parts that are whole; each part once."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._seen: set[str] = set()
        self.rows = self._errors = self._abstained = 0

    def count(self) -> None:
        for stem in self._output.committed():
            if stem not in self._seen:
                self._seen.add(stem)
                found = pq.read_table(
                    self._output.part(stem), columns=["error", "abstain"], filesystem=self._output.filesystem
                )
                self._add(found)

    def _add(self, found: pa.Table) -> None:
        self.rows += len(found)
        self._errors += len(found) - found.column("error").null_count
        self._abstained += found.column("abstain").to_pylist().count(True)

    def told(self) -> str:
        return f"{self._errors:,} errors, {self._abstained:,} abstained"
