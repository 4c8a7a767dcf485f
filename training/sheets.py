"""Figures as tables, for terminals and pages."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: what it shows.
        columns: headers.
        rows: cells.
        note: what must be known to read it.
        names: how many columns, the first, are no numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    names: int = 1

    def for_terminal(self) -> Table:
        """As rich prints it."""
        table = Table(title=self.title, caption=self.note or None)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number < self.names else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_html(self) -> str:
        """As a section of a page."""
        lines = "".join(
            f"<tr>{''.join(self._cell(tag, number, cell) for number, cell in enumerate(row))}</tr>"
            for tag, row in (("th", self.columns), *(("td", row) for row in self.rows))
        )
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<h2>{html.escape(self.title)}</h2><table>{lines}</table>{note}"

    def _cell(self, tag: str, number: int, cell: str) -> str:
        name = ' class="name"' if number < self.names else ""
        return f"<{tag}{name}>{html.escape(cell)}</{tag}>"


def predictions(figures: Figures, title: str) -> list[Sheet]:
    """How good the probabilities and the doubts are of eval mode, masks and moments, and of models beside."""
    rows = list(_by_label(figures))
    masks = figures["mc"]
    return [
        Sheet(
            title,
            ["", "accuracy", "NLL", "Brier", "ECE", "ECE, equal mass", "classwise ECE"],
            _picked(rows, ["accuracy", "nll", "brier", "ece", "ece_equal_mass", "classwise_ece"]),
            f"mc: {masks['samples']} masks, seed {masks['seed']}; NLL in nats; ECE in 15 bins",
        ),
        Sheet(
            f"{title}: doubts",
            ["", "AURC", "AUGRC", "answered at 5 % risk", "entropy", "mutual information"],
            _picked(rows, ["aurc", "augrc", "coverage_at_5_risk", "entropy", "mutual_information"]),
            "entropy and mutual information in nats, before calibration",
        ),
    ]


def _by_label(figures: Figures) -> Iterator[tuple[str, Figures]]:
    own: dict[str, Figures] = {"eval": figures["eval"]}
    own |= {f"{count} masks": row for count, row in figures.get("masks", {}).items()} or {"mc": figures["mc"]}
    own |= {"moments": figures["moments"]}
    for name, rows in {"": own, **figures.get("beside", {})}.items():
        for mode, row in rows.items():
            label = f"{name}: {mode}" if name else mode
            yield label, row
            if "calibrated" in row:
                yield f"{label}, calibrated", row["calibrated"]


def _picked(rows: Sequence[tuple[str, Figures]], names: Sequence[str]) -> list[list[str]]:
    return [[label, *(number(row.get(name)) for name in names)] for label, row in rows]


def promises(figures: Figures) -> list[Sheet]:
    """How well prediction sets and abstention keep what was calibrated, if anything was."""
    calibrated = {
        mode: figures[mode]["calibrated"] for mode in ("eval", "mc", "moments") if "calibrated" in figures[mode]
    }
    if not calibrated:
        return []
    sets = [
        [mode, method.upper(), coverage, number(found["covered"]), number(found["size"])]
        for mode, row in calibrated.items()
        for method, by_coverage in row["prediction_sets"].items()
        for coverage, found in by_coverage.items()
    ]
    answers = [
        [mode, risk, number(found["error"]), number(found["answered"])]
        for mode, row in calibrated.items()
        for risk, found in row["max_risk"].items()
    ]
    return [
        Sheet("Prediction sets", ["", "method", "coverage asked for", "found", "classes in a set"], sets, names=2),
        Sheet("Abstention", ["", "risk accepted", "wrong among the answered", "answered"], answers),
    ]


def classes(figures: Figures) -> list[Sheet]:
    """Errors by class, and coverage and size of prediction sets."""
    by_class = figures["classes"]
    methods = next(iter(by_class.values()))["prediction_sets"]
    return [
        Sheet("Error by class", ["class", "wrong"], [[name, number(row["error"])] for name, row in by_class.items()]),
        *(
            Sheet(
                f"Prediction sets by class, {method.upper()}",
                ["class", *methods[method]],
                [
                    [name, *(f"{found['covered']:.3f} / {found['size']:.2f}" for found in kept.values())]
                    for name, kept in ((name, row["prediction_sets"][method]) for name, row in by_class.items())
                ],
                "by coverage asked for: found / classes in a set; promised over all classes, not for each",
            )
            for method in methods
        ),
    ]


def outside(figures: Figures) -> list[Sheet]:
    """How well images that are no clothing are told from the test's, and what is decided about them."""
    apart = [
        [name, score, *(number(row[key]) for key in ("auroc", "aupr", "fpr95"))]
        for name, by_score in figures["ood"].items()
        for score, row in by_score.items()
    ]
    sheets = [Sheet("Told from the test images", ["images", "score", "AUROC", "AUPR", "FPR95"], apart, names=2)]
    if "decisions" in figures:
        decided = [
            [name, *(number(row.get(key)) for key in ("novel", "answered", "error"))]
            for name, row in figures["decisions"].items()
        ]
        columns = ["images", "novel", "answered", "wrong among the answered"]
        note = "as served with samples=100: risk 0.05, false-alarm rate 0.01"
        sheets.append(Sheet("Decisions", columns, decided, note))
    return sheets


_SHIFTED = {
    "accuracy": ("mc", "accuracy"),
    "ECE": ("mc", "ece"),
    "ECE, calibrated": ("mc", "calibrated", "ece"),
    "entropy": ("mc", "entropy"),
    "mutual information": ("mc", "mutual_information"),
    "novel": ("decision", "novel"),
    "answered": ("decision", "answered"),
    "wrong among the answered": ("decision", "error"),
}


def shifted(figures: Figures) -> list[Sheet]:
    """What becomes of accuracy, calibration, doubts and decisions when images are turned or corrupted."""
    turned = [
        [angle, number(row["eval"]["accuracy"]), *(number(_inner(row, path)) for path in _SHIFTED.values())]
        for angle, row in figures["rotation"].items()
    ]
    sheets = [Sheet("Rotation", ["degrees", "accuracy, eval", *_SHIFTED], turned, "others than eval: mc, as above")]
    severities = next(iter(figures["corruptions"].values()))
    for name, path in _SHIFTED.items():
        rows = [
            [corruption, *(number(_inner(row, path)) for row in by_severity.values())]
            for corruption, by_severity in figures["corruptions"].items()
        ]
        if any(cell for row in rows for cell in row[1:]):
            sheets.append(Sheet(f"Corruption: {name}, mc", ["severity", *severities], rows))
    return sheets


def _inner(row: Figures, path: Sequence[str]) -> float | None:
    found: Any = row
    for key in path:
        found = found.get(key) if found is not None else None
    return found


def number(value: float | None) -> str:
    """Four digits, or nothing."""
    return "" if value is None else f"{value:.4f}"
