"""Mean and interval of the metrics of several runs: `python -m training.compare runs/*/artifact`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table
from scipy import stats

from model import load_artifact
from training.terminal import console, error_console

app = typer.Typer(add_completion=False)

_FIGURES = ("accuracy", "nll", "brier", "ece")


def interval(values: list[float]) -> tuple[float, float]:
    """Compute the mean and half the width of its 95 % interval by Student's t distribution.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two runs, got {len(values)}")
    half_width = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half_width)


@app.command()
def main(
    artifacts: Annotated[list[Path], typer.Argument(help="Folders of artifacts that differ in their seeds.")],
) -> None:
    """Print mean and 95 % interval of the test metrics in the artifacts' cards."""
    try:
        cards = [load_artifact(path).card for path in artifacts]
        recipes = {str(card["recipe"]) for card in cards}
        if len(recipes) > 1:
            raise ValueError("the runs must share one recipe")
        metrics = [card["metrics"]["test"] for card in cards]
        table = Table(title=f"{len(cards)} runs, seeds {', '.join(str(card['seed']) for card in cards)}")
        for column in ("mode", *_FIGURES):
            table.add_column(column, justify="right")
        for mode in metrics[0]:
            for name, rows in {
                mode: [row_of_run[mode] for row_of_run in metrics],
                f"{mode}, calibrated": [
                    row_of_run[mode]["calibrated"] for row_of_run in metrics if "calibrated" in row_of_run[mode]
                ],
            }.items():
                if rows:
                    pairs = [interval([row[figure] for row in rows]) for figure in _FIGURES]
                    table.add_row(name, *(f"{mean:.4f} ± {half_width:.4f}" for mean, half_width in pairs))
    except (ValueError, KeyError) as error:
        error_console.print(f"error: {error}", style="bold red")
        raise typer.Exit(1) from error
    console.print(table)


if __name__ == "__main__":
    app()
