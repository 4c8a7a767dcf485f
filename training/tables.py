"""Figures as tables, for terminals and HTML pages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.table

from model.card_page import Table

Figures = Mapping[str, Any]

MODES = ("eval", "mc", "moments")
_ON_AVERAGE = "on average over the classes, not for each"
_GUARANTEED = {"mondrian": "for each class"}  # by prediction sets


class FigureTable(Table):
    """A table of figures, for pages and for terminals."""

    def as_rich(self) -> rich.table.Table:
        """Return the table for rich."""
        table = rich.table.Table(title=self.title, caption=self.note or None)
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="left" if place < self.text_columns else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def all_tables(figures: Figures) -> list[FigureTable]:
    """Tabulate all figures of an evaluation."""
    builders = (calibration_tables, class_tables, detection_tables, shift_tables)
    return prediction_tables(figures, "Test images") + [table for build in builders for table in build(figures)]


def prediction_tables(figures: Figures, title: str) -> list[FigureTable]:
    """Tabulate metrics of probabilities and uncertainty, of all estimators and compared models."""
    rows = list(_labelled_rows(figures))
    masks = figures["mc"]
    return [
        FigureTable(
            title,
            ["", "accuracy", "NLL", "Brier", "ECE", "ECE, equal mass", "classwise ECE"],
            _metric_rows(rows, ["accuracy", "nll", "brier", "ece", "ece_equal_mass", "classwise_ece"]),
            f"mc: {masks['samples']} masks, seed {masks['seed']}; NLL in nats; ECE in 15 bins",
        ),
        FigureTable(
            f"{title}: uncertainty",
            ["", "AURC", "AUGRC", "answered at 5 % risk", "entropy", "mutual information"],
            _metric_rows(rows, ["aurc", "augrc", "coverage_at_5_risk", "entropy", "mutual_information"]),
            "entropy and mutual information in nats, before calibration",
        ),
    ]


def _labelled_rows(figures: Figures) -> Iterator[tuple[str, Figures]]:
    own: dict[str, Figures] = {"eval": figures["eval"]}
    own |= {f"{count} masks": row for count, row in figures.get("masks", {}).items()} or {"mc": figures["mc"]}
    own |= {mode: figures[mode] for mode in ("moments",) if mode in figures}
    for name, rows in {"": own, **figures.get("beside", {})}.items():
        for mode, row in rows.items():
            label = f"{name}: {mode}" if name else mode
            yield label, row
            if "calibrated" in row:
                yield f"{label}, calibrated", row["calibrated"]


def _metric_rows(rows: Sequence[tuple[str, Figures]], text_columns: Sequence[str]) -> list[list[str]]:
    return [[label, *(format_number(row.get(name)) for name in text_columns)] for label, row in rows]


def calibration_tables(figures: Figures) -> list[FigureTable]:
    """Tabulate prediction sets and abstention against their calibrated targets; empty without calibration."""
    calibrated = {mode: figures[mode]["calibrated"] for mode in MODES if "calibrated" in figures.get(mode, {})}
    if not calibrated:
        return []
    sets = [
        [mode, method.upper(), coverage, format_number(found["covered"]), format_number(found["size"])]
        for mode, row in calibrated.items()
        for method, by_coverage in row["prediction_sets"].items()
        for coverage, found in by_coverage.items()
    ]
    answers = [
        [mode, risk, format_number(found["error"]), format_number(found["answered"])]
        for mode, row in calibrated.items()
        for risk, found in row["max_risk"].items()
    ]
    return [
        FigureTable(
            "Prediction sets", ["", "method", "requested coverage", "coverage", "mean size"], sets, text_columns=2
        ),
        FigureTable("Abstention", ["", "requested risk", "wrong among the answered", "answered"], answers),
    ]


def class_tables(figures: Figures) -> list[FigureTable]:
    """Tabulate errors, and coverage and size of prediction sets, by class."""
    by_class = figures["classes"]
    methods = next(iter(by_class.values()))["prediction_sets"]
    return [
        FigureTable(
            "Error by class",
            ["class", "wrong"],
            [[name, format_number(row["error"])] for name, row in by_class.items()],
        ),
        *(
            FigureTable(
                f"Prediction sets by class, {method.upper()}",
                ["class", *methods[method]],
                [
                    [name, *(f"{found['covered']:.3f} / {found['size']:.2f}" for found in by_coverage.values())]
                    for name, by_coverage in ((name, row["prediction_sets"][method]) for name, row in by_class.items())
                ],
                f"by requested coverage: coverage / mean size; guaranteed {_GUARANTEED.get(method, _ON_AVERAGE)}",
            )
            for method in methods
        ),
    ]


def detection_tables(figures: Figures) -> list[FigureTable]:
    """Tabulate the detection of out-of-distribution images, and the decisions about them."""
    detection = [
        [name, score, *(format_number(row[key]) for key in ("auroc", "aupr", "fpr95"))]
        for name, by_score in figures["ood"].items()
        for score, row in by_score.items()
    ]
    tables = [
        FigureTable(
            "Out-of-distribution detection", ["images", "score", "AUROC", "AUPR", "FPR95"], detection, text_columns=2
        )
    ]
    if "decisions" in figures:
        decided = [
            [name, *(format_number(row.get(key)) for key in ("novel", "answered", "error"))]
            for name, row in figures["decisions"].items()
        ]
        columns = ["images", "novel", "answered", "wrong among the answered"]
        note = "as served with samples=100: risk 0.05, false-alarm rate 0.01"
        tables.append(FigureTable("Decisions", columns, decided, note))
    return tables


_SHIFT_FIGURES = {
    "accuracy": ("mc", "accuracy"),
    "ECE": ("mc", "ece"),
    "ECE, calibrated": ("mc", "calibrated", "ece"),
    "entropy": ("mc", "entropy"),
    "mutual information": ("mc", "mutual_information"),
    "novel": ("decision", "novel"),
    "answered": ("decision", "answered"),
    "wrong among the answered": ("decision", "error"),
}


def shift_tables(figures: Figures) -> list[FigureTable]:
    """Tabulate accuracy, calibration, uncertainty and decisions for rotated and corrupted images."""
    rotated = [
        [
            angle,
            format_number(row["eval"]["accuracy"]),
            *(format_number(_look_up(row, path)) for path in _SHIFT_FIGURES.values()),
        ]
        for angle, row in figures["rotation"].items()
    ]
    tables = [
        FigureTable(
            "Rotation",
            ["degrees", "accuracy, eval", *_SHIFT_FIGURES],
            rotated,
            "other columns than the first accuracy: mc",
        )
    ]
    severities = next(iter(figures["corruptions"].values()))
    for name, path in _SHIFT_FIGURES.items():
        rows = [
            [corruption, *(format_number(_look_up(row, path)) for row in by_severity.values())]
            for corruption, by_severity in figures["corruptions"].items()
        ]
        if any(cell for row in rows for cell in row[1:]):
            tables.append(FigureTable(f"Corruption: {name}, mc", ["severity", *severities], rows))
    return tables


def _look_up(row: Figures, path: Sequence[str]) -> float | None:
    found: Any = row
    for key in path:
        found = found.get(key) if found is not None else None
    return found


def format_number(value: float | None) -> str:
    """Format a number with four decimals; None is empty."""
    return "" if value is None else f"{value:.4f}"
