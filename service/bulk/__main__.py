"""Command line of bulk scoring: `python -m service.bulk IN OUT`."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from model import Artifact, ArtifactError
from model.artifact import write_atomically
from service import __version__
from service.bulk.inputs.discovery import open_source
from service.bulk.inputs.source import InputError, Source
from service.bulk.job import JobError, ray_session, score
from service.bulk.output import Output, OutputError
from service.bulk.progress import show_progress
from service.bulk.report import page
from service.bulk.scoring import Scorer
from service.bulk.summary import sections, summarize_output
from service.inference.artifacts import load_named
from service.inference.limits import ImageLimits
from service.pipeline import check_method
from service.schemas.parameters import Parameters
from service.schemas.problems import Problem
from service.settings import Settings, SettingsError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
_MAX_ROWS = 20  # of a printed table


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    source: Annotated[str, typer.Argument(metavar="IN", help="Folder, pattern, Parquet, npy or IDX; path or URL.")],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Folder for the Parquet files with the answers; path or URL.")
    ],
    *,
    samples: Annotated[
        str | None,
        typer.Option(help="Dropout masks to average: 0 for eval mode, 2..1000, or auto.", show_default="100"),
    ] = None,
    method: Annotated[
        str, typer.Option(help="masks samples dropout; moments propagates mean and variance instead.")
    ] = "masks",
    seed: Annotated[str, typer.Option(help="Seed of the masks: the same seed gives the same rows.")] = "0",
    coverage: Annotated[str, typer.Option(help="How often the prediction set contains the true class.")] = "0.9",
    set_method: Annotated[
        str, typer.Option(help="Method of the prediction set: lac, aps, raps, or mondrian for coverage of each class.")
    ] = "lac",
    max_risk: Annotated[str, typer.Option(help="Abstain so that at most this part of the answers is wrong.")] = "0.05",
    invert: Annotated[str, typer.Option(help="Swap dark and light: auto, yes or no.")] = "auto",
    model: Annotated[
        str, typer.Option(help="Folder of an artifact.", show_default="$MCD_MODEL, or the embedded one")
    ] = "",
    image_column: Annotated[str, typer.Option(help="Column of a Parquet data set that has the images.")] = "image",
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of a Parquet data set that names the rows.", show_default="id, or file and row"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes.", show_default="number of cores")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS", help="Address of a Ray cluster that does the work.", show_default="this machine"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run, if there is one.")] = False,
    report: Annotated[Path | None, typer.Option(help="File for an HTML report with tables and pictures.")] = None,
) -> None:
    """Predict all images of IN and write a row for each into OUT.

    OUT is complete when it contains the file _SUCCESS. An image that can't be read gets a row that says what is wrong
    with it. After Ctrl-C, a crash or a full disk, the same command with --resume continues.
    """
    options = {
        "method": method,
        "seed": seed,
        "coverage": coverage,
        "set_method": set_method,
        "max_risk": max_risk,
        "invert": invert,
    }
    if samples is not None or method == "masks":
        options["samples"] = samples or "100"
    try:
        parameters = Parameters.gather(options.items())
        settings = Settings.from_mapping(os.environ)
        artifact = load_named(model or settings.model)
        check_method(parameters, artifact.moments_unavailable)
        images = open_source(
            source,
            image=image_column,
            identifier=id_column,
            max_bytes=settings.max_body_bytes,
            spec=artifact.input,
        )
        scorer_options: dict[str, Any] = {
            "artifact": artifact,
            "parameters": parameters,
            "encoded": images.encoded,
            "limits": ImageLimits(settings.max_pixels, settings.max_aspect_ratio),
        }
        output = Output(out)
        output.begin(_job(artifact, parameters, source, images), resume=resume)
        if not output.is_finished:
            with output.locked():
                _run(images, output, workers, address, scorer_options)
        summary = summarize_output(output)
        _print_summary(output, images, summary)
        if report is not None:
            write_atomically(report, page(images, Scorer(**scorer_options), output, summary))
    except (Problem, SettingsError, ArtifactError, InputError, OutputError, JobError, OSError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted: --resume continues from the rows that are written", 130)


def _job(artifact: Artifact, parameters: Parameters, source: str, images: Source) -> dict[str, Any]:
    """Everything that determines the rows; a run can be resumed only if all of it is unchanged."""
    return {
        "version": __version__,
        "model": artifact.sha256,
        "input": artifact.input.to_json(),
        **parameters.model_dump(mode="json"),
        "in": source,
        "images": images.count,
        "identity": images.identity,
    }


def _run(images: Source, output: Output, workers: int | None, address: str | None, scorer: dict[str, Any]) -> None:
    output.discard_broken()
    done = output.done()
    if len(done) < images.count:
        with ray_session(address, workers) as count, show_progress(output, images.count):
            score(images, output, done, workers=count, **scorer)
    output.discard_broken()
    output.check(images.count)
    output.finish(summarize_output(output))


def _print_summary(output: Output, images: Source, summary: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(f"{summary['rows']:,} rows in {output.where}", soft_wrap=True)
    if images.skipped:
        console.print(f"{images.skipped:,} other files were skipped")
    for heads, rows in sections(summary):
        console.print(_table(heads, rows[:_MAX_ROWS]))


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _fail(message: str, status: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(message)
    raise typer.Exit(status)


if __name__ == "__main__":
    app()
