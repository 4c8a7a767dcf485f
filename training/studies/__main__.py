"""Run studies: `python -m training.studies all`."""

import os
import sys
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Shown

from training.data import DataError
from training.studies.catalogue import STUDIES
from training.studies.document import FOLDER, PAGE, RESULTS, as_page, find_all, write
from training.studies.lab import FULL, QUICK, open_lab
from training.studies.stack import DivergenceError
from training.studies.study import Findings, Plan, Study
from training.studies.table import Table, TableError
from training.studies.work import Unit, missing, work
from training.terminal import console, errors

Name = StrEnum("Name", {name.upper().replace("-", "_"): name for name in [*STUDIES, "all"]})
app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    name: Annotated[Name, typer.Argument(help="Which study, or all.")],
    *,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="How many, for the intervals.", show_default="5; quick: 2")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of each study's own number.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few images, minutes instead of half an hour, for the directions alone.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of table, text and pictures.", show_default="runs/studies, or runs/studies-quick"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of Fashion-MNIST.", show_default="$MCD_DATA_DIR, or found")
    ] = None,
    mnist: Annotated[
        Path | None, typer.Option(help="File of MNIST's test images.", show_default="the cache, or downloaded")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of one thread each.", show_default="one a core")
    ] = None,
) -> None:
    """Answer the chapter's questions by experiments; leave table, text and pictures in a folder.

    What the table holds already isn't done again: after Ctrl-C or a crash, the same command goes on. Ends with 1 if a
    direction that must hold doesn't.
    """
    plan = Plan(QUICK if quick else FULL, seeds or (2 if quick else 5), epochs, quick)
    folder = out or Path("runs") / ("studies-quick" if quick else "studies")
    chosen = list(STUDIES.values()) if name == "all" else [STUDIES[name.value]]
    try:
        table = Table(folder / FOLDER / RESULTS)
        units = missing(chosen, plan, table)
        if units:
            load = partial(open_lab, plan.scale, data=data, mnist=mnist)
            load()  # a worker could only say that it is broken
            _work(units, table, load, workers=min(workers or os.cpu_count() or 1, len(units)))
        findings = find_all(list(STUDIES.values()), plan, table)
        write(folder, as_page(list(STUDIES.values()), findings, plan, table), findings)
    except (DataError, TableError, DivergenceError, OSError, BrokenProcessPool) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        kept = folder / FOLDER / RESULTS
        told = f"what was finished is in {kept}" if kept.exists() else "nothing was finished"
        _fail(f"interrupted; {told}: the same command goes on", 130)
    held = _show(chosen, findings)
    console.print(f"text {folder / PAGE}, table {folder / FOLDER / RESULTS}")
    sys.exit(0 if held else 1)


def _work(units: list[Unit], table: Table, load: partial, *, workers: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("epochs of networks", total=sum(unit.networks for unit in units))
        for unit, rows in work(units, load, workers=workers):
            table.add(rows)
            told = ", ".join(variant.name for variant in unit.variants)
            seconds = sum(row.value for row in rows if row.metric == "seconds")
            progress.console.print(f"{unit.study}, seed {unit.seed}: {told} ({seconds:.0f} s)")
            progress.advance(bar, unit.networks)


def _show(studies: list[Study], findings: dict[str, Findings]) -> bool:
    """Print which directions hold; tell whether all do."""
    shown = Shown("study", "direction", "found", "above", "", title="Directions that must hold")
    checks = [(study.name, check) for study in studies for check in findings[study.name].checks]
    for name, check in checks:
        shown.add_row(
            name, check.what, f"{check.value:.4f}", f"{check.tolerance:g}", "holds" if check.holds else "FAILS"
        )
    console.print(shown)
    return all(check.holds for _, check in checks)


def _fail(message: str, code: int) -> None:
    errors.print(f"error: {message}", style="bold red")
    sys.exit(code)


if __name__ == "__main__":
    app()
