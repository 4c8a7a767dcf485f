"""Train the network and write an artifact: `python -m training.train --recipe default`."""

import io
import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model import save_artifact
from model.artifact import CARD, NOVELTY, WEIGHTS, write_atomically
from model.examples import Example
from training.calibrate import fit_calibrations
from training.data import CLASSES, FILES, DataError, FashionMNIST, Images, Splits, load_fashion_mnist, split_data
from training.estimates import estimate
from training.examples import make_example
from training.fit import Epoch, Fit
from training.measure import measure
from training.novelty import fit_novelty
from training.plots import learning_curves
from training.recipes import RECIPES, Recipe
from training.tables import prediction_tables
from training.terminal import console, error_console
from training.versions import software_versions

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
CURVES = "curves.png"
ARTIFACT = "artifact"
METRIC_SAMPLES = 100

RecipeName = StrEnum("RecipeName", {name: name for name in RECIPES})
app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@dataclass(frozen=True)
class Run:
    """One training run: its recipe, its folder, and the command that repeats it."""

    name: str
    recipe: Recipe
    seed: int
    device: torch.device
    out: Path
    command: str
    novelty: bool = True

    @property
    def held_out_name(self) -> str:
        """Name of the images on which each epoch is measured."""
        if self.recipe.validate:
            return "validation"
        return "calibration" if self.recipe.calibration else "test"


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    *,
    recipe: Annotated[
        RecipeName, typer.Option(help="chapter trains as d2l.ai does; default makes the embedded model.")
    ] = (RecipeName["default"]),
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order of images, augmentation and dropout.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs instead of the recipe's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for artifact, checkpoint, log and curves.", show_default="runs/RECIPE-seedSEED"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of Fashion-MNIST.", show_default="$MCD_DATA_DIR, or found")
    ] = None,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate",
            help="Measure on images left out of training, not on the test images: to choose between recipes.",
        ),
    ] = False,
    no_novelty: Annotated[
        bool, typer.Option("--no-novelty", help="Fit no novelty score, which makes the artifact smaller.")
    ] = (False),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after the run's last epoch, if there is one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an existing run in the folder and start again.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; auto takes a GPU if there is one.")] = "auto",
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; another number may change the last bits of the result.")
    ] = 1,
    publish: Annotated[
        bool, typer.Option("--publish", help="Also save the artifact in the BentoML model store.")
    ] = False,
) -> None:
    """Fit the dropout MLP to Fashion-MNIST and write artifact, learning curves and log into a folder.

    Each epoch is saved before its line is printed. After Ctrl-C or a crash, the same command with --resume continues
    and ends with the same bits.
    """
    torch.set_num_threads(threads)
    chosen = RECIPES[recipe.value]
    folder = out or Path("runs") / f"{recipe.value}-seed{seed}"
    try:
        run = Run(
            name=recipe.value,
            recipe=replace(chosen, epochs=epochs or chosen.epochs, validate=validate),
            seed=seed,
            device=_device(device),
            out=folder,
            command=_command(
                recipe=recipe.value, seed=seed, epochs=epochs, threads=threads, validate=validate, no_novelty=no_novelty
            ),
            novelty=not no_novelty,
        )
        if validate and not chosen.calibration:
            raise _RunError(f"--validate: the recipe {recipe.value} leaves no images out of training")
        if not (resume or overwrite) and (folder / CHECKPOINT).exists():
            raise _RunError(
                f"{folder} has a run already: go on with --resume, start again with --overwrite, or set --out"
            )
        data_set = load_fashion_mnist(data)
        if overwrite:
            _discard(folder)
        splits = split_data(data_set.train, images_per_part=run.recipe.calibration, validate=run.recipe.validate)
        fit = _start_fit(run, splits, data_set, resume=resume)
        _run_epochs(run, fit)
        _write_results(run, fit, splits, data_set, publish=publish)
    except (DataError, _RunError, OSError) as error:
        _exit_with_error(str(error), 1)
    except KeyboardInterrupt:
        saved = f"the finished epochs are in {folder}" if (folder / CHECKPOINT).exists() else "no epoch was finished"
        _exit_with_error(f"interrupted; {saved}: go on with --resume", 130)


class _RunError(Exception):
    """A request that would overwrite or mix runs, or can't be carried out."""


def _start_fit(run: Run, splits: Splits, data_set: FashionMNIST, *, resume: bool) -> Fit:
    train = splits.training
    held_out = {"validation": splits.validation, "calibration": splits.calibration, "test": data_set.test}[
        run.held_out_name
    ]
    fit = Fit(run.recipe, train, held_out, seed=run.seed, device=run.device)
    console.print(f"recipe {run.name}: {_describe_recipe(run.recipe)}")
    console.print(
        f"{len(train):,} training and {len(held_out):,} {run.held_out_name} images from {data_set.source}, "
        f"seed {run.seed}, {run.device}, {torch.get_num_threads()} thread(s)"
    )
    checkpoint = run.out / CHECKPOINT
    if resume and checkpoint.exists():
        try:
            fit.load_state_dict(torch.load(checkpoint, map_location=run.device, weights_only=True))
        except (ValueError, KeyError, RuntimeError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise _RunError(f"{checkpoint} can't be resumed: {reason}; start again with --overwrite") from error
        _save_log(run, fit)  # a crash may have left the log one epoch behind the checkpoint
        console.print(f"going on after epoch {len(fit.history)} of {run.recipe.epochs}")
    return fit


def _discard(folder: Path) -> None:
    """Remove an old run's files, so that they are not mixed with a new run's."""
    for name in (CHECKPOINT, LOG, CURVES, *(f"{ARTIFACT}/{file}" for file in (CARD, WEIGHTS, NOVELTY))):
        (folder / name).unlink(missing_ok=True)


def _run_epochs(run: Run, fit: Fit) -> None:
    run.out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("epochs", total=run.recipe.epochs, completed=len(fit.history))
        while len(fit.history) < run.recipe.epochs:
            epoch = fit.run_epoch()
            _save_checkpoint(run, fit)
            progress.console.print(_epoch_line(epoch, run))
            progress.advance(bar)


def _save_checkpoint(run: Run, fit: Fit) -> None:
    buffer = io.BytesIO()
    torch.save(fit.state_dict(), buffer)
    write_atomically(run.out / CHECKPOINT, buffer.getvalue())
    _save_log(run, fit)


def _save_log(run: Run, fit: Fit) -> None:
    log = "".join(json.dumps(asdict(epoch)) + "\n" for epoch in fit.history)
    write_atomically(run.out / LOG, log.encode())


def _write_results(run: Run, fit: Fit, splits: Splits, data_set: FashionMNIST, *, publish: bool) -> None:
    title = f"{run.name}, seed {run.seed}"
    curves = learning_curves(fit.history, title=title, held_out_name=run.held_out_name)
    write_atomically(run.out / CURVES, curves)
    network = fit.network.cpu()
    evaluation_images = {"validation": splits.validation} if run.recipe.validate else {"test": data_set.test}
    calibrations, novelty = [], None
    if run.recipe.calibration and not run.recipe.validate:
        calibrations = fit_calibrations([network], splits.calibration, console=console)
        novelty = fit_novelty(network, splits.training, splits.calibration) if run.novelty else None
    metrics = {
        name: measure(
            estimate(network, images, samples=(METRIC_SAMPLES,), seed=0, console=console, label=name),
            images.labels_B.numpy(),
            samples=METRIC_SAMPLES,
            seed=0,
            calibrations=calibrations,
        )
        for name, images in evaluation_images.items()
    }
    folder = run.out / ARTIFACT
    save_artifact(
        folder,
        network,
        run.recipe.architecture,
        _card(run, fit, splits, metrics),
        calibrations=calibrations,
        novelty=novelty,
        examples=_examples(data_set.test),
    )
    for name, rows in metrics.items():
        for table in prediction_tables(rows, f"{len(evaluation_images[name]):,} {name} images"):
            console.print(table.as_rich())
    console.print(f"artifact {folder}, learning curves {run.out / CURVES}, log {run.out / LOG}")
    console.print(f"serve it: MCD_MODEL={shlex.quote(str(folder.resolve()))} make serve")
    if publish:
        console.print(f"in the BentoML model store: MCD_MODEL=bentoml:{_publish(folder, run)} make serve")


def _examples(test: Images) -> list[Example]:
    """The first image of each class, in the order of the data set."""
    labels = test.labels_B.tolist()
    return [make_example(CLASSES[label], test.images_B[labels.index(label)].numpy()) for label in dict.fromkeys(labels)]


def _card(run: Run, fit: Fit, splits: Splits, metrics: dict[str, Any]) -> dict[str, Any]:
    recipe = {name: value for name, value in asdict(run.recipe).items() if name != "architecture"}
    return {
        "classes": list(CLASSES),
        "input": "float in [0, 1] of shape (B, 1, 28, 28), light on dark",
        "command": run.command,
        "recipe": {"name": run.name, **recipe},
        "seed": run.seed,
        "data": {
            "name": "Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT License, Zalando SE)",
            "sha256": {file.name: file.sha256 for file in FILES},
            "split": {
                "train": len(splits.training),
                "validation": len(splits.validation),
                "calibration": len(splits.calibration),
            },
        },
        "metrics": {"last_epoch": asdict(fit.history[-1]), **metrics},
        "versions": software_versions(),
        "device": run.device.type,
        "threads": torch.get_num_threads(),
    }


def _publish(folder: Path, run: Run) -> str:
    import bentoml  # noqa: PLC0415 - slow to import, and only wanted here

    with bentoml.models.create("mcd", labels={"recipe": run.name, "seed": str(run.seed)}) as stored:
        shutil.copytree(folder, stored.path, dirs_exist_ok=True)
    return str(stored.tag)


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise _RunError(f"--device {name} can't be used here: {str(error).splitlines()[0]}") from error


def _command(**options: object) -> str:
    given = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in options.items()
        if value is not None and value is not False
    ]
    return " ".join(["python -m training.train", *given])


def _describe_recipe(recipe: Recipe) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(recipe).items() if value not in (None, False))


def _epoch_line(epoch: Epoch, run: Run) -> str:
    return (
        f"epoch {epoch.epoch:>3}/{run.recipe.epochs}  train loss {epoch.train_loss:.4f}  "
        f"accuracy {epoch.train_accuracy:.4f}  |  {run.held_out_name} loss {epoch.held_out_loss:.4f}  "
        f"accuracy {epoch.held_out_accuracy:.4f}"
    )


def _exit_with_error(message: str, code: int) -> None:
    error_console.print(f"error: {message}", style="bold red")
    sys.exit(code)


if __name__ == "__main__":
    app()
