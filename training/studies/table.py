"""Results of all studies in one tidy table: a CSV file that is rewritten atomically."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from model.artifact import write_atomically


class ResultsTableError(Exception):
    """The file is not a valid table of results."""


@dataclass(frozen=True, order=True)
class Row:
    """One number.

    Attributes:
        study: name of the study.
        configuration: name of the measured variant.
        seed: seed of the training.
        key: digest of everything else that determines the number.
        metric: measured quantity.
        at: epoch, or number of masks; 0 if neither applies.
        value: the number, to eight significant digits.

    Raises:
        ValueError: the value is not finite.
    """

    study: str
    configuration: str
    seed: int
    key: str
    metric: str
    at: int
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"{self.metric} of {self.configuration} in {self.study}: must be finite, got {self.value}")
        object.__setattr__(self, "value", float(f"{self.value:.8g}"))

    @property
    def cell(self) -> tuple[str, str, int, str]:
        """Key of the rows that are measured and stored together: study, configuration, seed, key."""
        return self.study, self.configuration, self.seed, self.key


COLUMNS = tuple(field.name for field in fields(Row))


class ResultsTable:
    """Rows by cell, stored in a file that is rewritten as a whole.

    Cells with other keys are kept, so that runs of different sizes share a file.

    Args:
        path: the file; it need not exist.

    Raises:
        ResultsTableError: the file has other content.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells = _cells(path)

    def __contains__(self, cell: tuple[str, str, int, str]) -> bool:
        return cell in self._cells

    def __getitem__(self, cell: tuple[str, str, int, str]) -> list[Row]:
        return self._cells[cell]

    def add(self, rows: Iterable[Row]) -> None:
        """Add or replace whole cells, and write the file together with cells that other processes have added."""
        added = _by_cell(rows)
        self._cells |= _cells(self._path) | added
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, self._as_csv())

    def _as_csv(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for cell in sorted(self._cells):
            writer.writerows((*astuple(row)[:-1], f"{row.value:.8g}") for row in sorted(self._cells[cell]))
        return text.getvalue().encode()


def _cells(path: Path) -> dict[tuple[str, str, int, str], list[Row]]:
    return _by_cell(_read(path) if path.exists() else [])


def _by_cell(rows: Iterable[Row]) -> dict[tuple[str, str, int, str], list[Row]]:
    cells: dict[tuple[str, str, int, str], list[Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    return cells


def _read(path: Path) -> list[Row]:
    try:
        with path.open(newline="") as file:
            header, *lines = csv.reader(file)
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)}")
        return [
            Row(study, configuration, int(seed), key, metric, int(at), float(value))
            for study, configuration, seed, key, metric, at, value in lines
        ]
    except (ValueError, OSError, csv.Error) as error:
        raise ResultsTableError(
            f"{path}: expected a table with the columns {', '.join(COLUMNS)} ({error}); move it away, or set --out"
        ) from error
