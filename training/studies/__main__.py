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
from rich.table import Table

from training.data import DataError
from training.studies.catalogue import STUDIES
from training.studies.document import FOLDER, PAGE, RESULTS, as_page, interpret_all, write
from training.studies.measurements import FULL, QUICK, load_study_data
from training.studies.stack import DivergenceError
from training.studies.study import Findings, Plan, Study
from training.studies.table import ResultsTable, ResultsTableError
from training.studies.workers import WorkUnit, missing_units, run_units
from training.terminal import DataOption, console, exit_with_error

Name = StrEnum("Name", {name.upper().replace("-", "_"): name for name in [*STUDIES, "all"]})
app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    name: Annotated[Name, typer.Argument(help="Which study, or all.")],
    *,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Number of seeds, for the intervals.", show_default="5; quick: 2")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs, instead of each study's own.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few images: minutes instead of half an hour, to check the directions only.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of table, text and pictures.", show_default="runs/studies, or runs/studies-quick"),
    ] = None,
    data: DataOption = None,
    mnist: Annotated[
        Path | None, typer.Option(help="File of MNIST's test images.", show_default="the cache, or downloaded")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of one thread each.", show_default="one a core")
    ] = None,
) -> None:
    """Answer the chapter's questions by experiments; write table, text and pictures to a folder.

    Results that the table contains are not computed again: after Ctrl-C or a crash, the same command continues. The
    exit status is 1 if an expected direction does not hold.
    """
    plan = Plan(QUICK if quick else FULL, seeds or (2 if quick else 5), epochs, quick)
    folder = out or Path("runs") / ("studies-quick" if quick else "studies")
    chosen = list(STUDIES.values()) if name == "all" else [STUDIES[name.value]]
    try:
        table = ResultsTable(folder / FOLDER / RESULTS)
        units = missing_units(chosen, plan, table)
        if units:
            load = partial(load_study_data, plan.scale, data=data, mnist=mnist)
            load()  # reports missing data here, because a worker can't
            _run_units(units, table, load, workers=min(workers or os.cpu_count() or 1, len(units)))
        findings = interpret_all(list(STUDIES.values()), plan, table)
        write(folder, as_page(list(STUDIES.values()), findings, plan, table), findings)
    except (DataError, ResultsTableError, DivergenceError, OSError, BrokenProcessPool) as error:
        exit_with_error(str(error))
    except KeyboardInterrupt:
        path = folder / FOLDER / RESULTS
        progress = f"finished results are in {path}" if path.exists() else "nothing was finished"
        exit_with_error(f"interrupted; {progress}; run the same command to continue", 130)
    all_hold = _print_checks(chosen, findings)
    console.print(f"text {folder / PAGE}, table {folder / FOLDER / RESULTS}")
    sys.exit(0 if all_hold else 1)


def _run_units(units: list[WorkUnit], table: ResultsTable, load: partial, *, workers: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("epochs of networks", total=sum(unit.networks for unit in units))
        for unit, rows in run_units(units, load, workers=workers):
            table.add(rows)
            names = ", ".join(variant.name for variant in unit.variants)
            seconds = sum(row.value for row in rows if row.metric == "seconds")
            progress.console.print(f"{unit.study}, seed {unit.seed}: {names} ({seconds:.0f} s)")
            progress.advance(bar, unit.networks)


def _print_checks(studies: list[Study], findings: dict[str, Findings]) -> bool:
    """Print which expected directions hold; return whether all do."""
    table = Table("study", "direction", "found", "above", "", title="Expected directions")
    checks = [(study.name, check) for study in studies for check in findings[study.name].checks]
    for name, check in checks:
        table.add_row(
            name, check.what, f"{check.value:.4f}", f"{check.tolerance:g}", "holds" if check.holds else "FAILS"
        )
    console.print(table)
    return all(check.holds for _, check in checks)


if __name__ == "__main__":
    app()
