"""Predict image files and print what the service would answer: `mcd predict IMAGE...`."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from model import ArtifactError
from service.inference.artifacts import load_named
from service.inference.limits import ImageLimits
from service.pipeline import Pipeline, Run
from service.schemas.answers import Answer
from service.schemas.parameters import Parameters
from service.schemas.problems import Problem
from service.settings import Settings, SettingsError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

Ask = Callable[[bytes], Answer]

_COLUMNS = ("label", "confidence", "set", "abstain", "mutual\ninformation", "novelty")
_WIDE = 1000  # characters: a file or a pipe has no right edge


@app.command()
def main(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="PNG, JPEG or WebP files.")],
    *,
    samples: Annotated[str, typer.Option(help="Dropout masks to average: 0 for eval mode, 2..1000, or auto.")] = "100",
    seed: Annotated[str, typer.Option(help="Seed of the masks: the same seed gives the same answer.")] = "0",
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of an artifact.", show_default="$MCD_MODEL, or the embedded one"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each image, one a line.")] = False,
) -> None:
    """Print the predicted class of each image and how sure the network is, without a server.

    The table has these columns:

    - label, confidence: the predicted class and its calibrated probability
    - set: the classes that may be true; it contains the true class of 90 % of ordinary images
    - abstain: no, or why to ask a person: risk (the confidence is too low), novelty (unlike ordinary images)
    - mutual information: of class and dropout masks, in nats; "-" in eval mode
    - novelty: how unlike ordinary images this image is; about 0 is typical. Where it is too much, what is unusual: pose
      (it may be turned, moved, smaller or covered), appearance (brightness, contrast, texture), or features

    --json prints the whole answer of POST /predict and the name of the file.

    An image that can't be read is reported on standard error; the others are printed and the exit status is 1.
    """
    try:
        ask = _start(model, Parameters.gather([("samples", samples), ("seed", seed)]))
    except (Problem, SettingsError, ArtifactError, ValueError, TypeError) as error:
        _fail(str(error))
    errors: list[str] = []
    answers = _answers(images, ask, errors)
    if as_json:
        for path, answer in answers:
            print(json.dumps({"image": str(path)} | answer.model_dump(mode="json")), flush=True)  # noqa: T201
    else:
        _print_table(answers)
    if errors:
        _fail("\n".join(errors))


def _start(model: Path | None, parameters: Parameters) -> Ask:
    """Load a model; return what the service does with the bytes of one image."""
    threadpool_limits(1, user_api="blas")  # as in the service
    settings = Settings.from_mapping(os.environ)
    pipeline = Pipeline(
        load_named(str(model or settings.model)), ImageLimits(settings.max_pixels, settings.max_aspect_ratio)
    )
    return lambda image: pipeline.answer(pipeline.accept(image), parameters, Run())


def _answers(paths: Iterable[Path], ask: Ask, errors: list[str]) -> Iterator[tuple[Path, Answer]]:
    """Yield each image's answer; note instead what is wrong with an image."""
    for path in paths:
        try:
            yield path, ask(path.read_bytes())
        except Problem as problem:
            errors.append(f"{path}: {problem.detail}")
        except OSError as error:
            errors.append(f"{path}: {error.strerror or error}")


def _print_table(answers: Iterable[tuple[Path, Answer]]) -> None:
    table = Table(box=None)
    table.add_column("image", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, no_wrap=name != "set")
    for path, answer in answers:
        table.add_row(str(path), *_cells(answer))
    if table.row_count:
        width = None if sys.stdout.isatty() else _WIDE
        Console(width=width, markup=False, emoji=False, highlight=False).print(table)


def _cells(answer: Answer) -> tuple[str, ...]:
    spread, novelty = answer.uncertainty, answer.novelty
    return (
        answer.label,
        f"{answer.confidence:.3f}",
        "-" if answer.prediction_set is None else ", ".join(answer.prediction_set) or "empty",
        answer.abstain_reason or "no",
        "-" if spread is None else f"{spread.mutual_information:.3f}",
        "-" if novelty is None else f"{novelty.score:.2f}" + (f" ({novelty.view})" if novelty.flagged else ""),
    )


def _fail(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False).print(message)
    raise typer.Exit(1)
