"""Train the network and write an artifact: `python -m training.train --recipe default`."""

import io
import json
import shlex
import shutil
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from model import MLPConfig, load_artifact, save_artifact, save_compiled
from model.artifact import FILES as FILES_OF_ARTIFACT
from model.artifact import write_atomically
from model.examples import Example
from model.input_spec import FASHION_MNIST
from model.network import compile_to_files
from model.novelty import FeatureNovelty, Novelty
from training.calibrate import fit_calibrations
from training.cnn import CNNConfig
from training.data import CLASSES, FILES, DataError, FashionMNIST, Images, Splits, load_fashion_mnist, split_data
from training.estimates import Estimators, estimate
from training.examples import make_example
from training.failures import fashion_failures, record_failures
from training.feature_novelty import fit_graph_novelty
from training.fit import Epoch, Fit
from training.measure import measure, measure_class_coverage
from training.novelty import fit_novelty
from training.plots import learning_curves
from training.poses import fit_poses
from training.recipes import RECIPES, Recipe
from training.tables import prediction_tables
from training.terminal import DataOption, console, exit_with_error
from training.versions import software_versions

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
CURVES = "curves.png"
ARTIFACT = "artifact"
METRIC_SAMPLES = 100
INTENDED_USE = (
    "To show, teach and test how a network says what it is not sure of. It classifies pictures of single garments: "
    "upright, light on a dark background, 28 x 28 pixels, as in Fashion-MNIST."
)
ETHICS = (
    "The pictures show goods of a shop, without people, and contain no personal data. The classes are the shop's own. "
    "A wrong class in a demonstration harms nobody; the network is not made for decisions about people or goods."
)

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
        RecipeName,
        typer.Option(help="chapter trains as d2l.ai does; default makes the embedded model; cnn is convolutional."),
    ] = (RecipeName["default"]),
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order of images, augmentation and dropout.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs instead of the recipe's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for artifact, checkpoint, log and curves.", show_default="runs/RECIPE-seedSEED"),
    ] = None,
    data: DataOption = None,
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
        exit_with_error(str(error))
    except KeyboardInterrupt:
        saved = f"the finished epochs are in {folder}" if (folder / CHECKPOINT).exists() else "no epoch was finished"
        exit_with_error(f"interrupted; {saved}: go on with --resume", 130)


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
    for name in (CHECKPOINT, LOG, CURVES, *(f"{ARTIFACT}/{file}" for file in FILES_OF_ARTIFACT)):
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
    trained = _Trained(run.recipe.architecture, fit.network.cpu())
    evaluation_images = {"validation": splits.validation} if run.recipe.validate else {"test": data_set.test}
    calibrations, novelty = [], None
    if run.recipe.calibration and not run.recipe.validate:
        calibrations = fit_calibrations([trained.estimators], splits.calibration, console=console)
        novelty = trained.fit_novelty(splits) if run.novelty else None
    estimates = {
        name: estimate(trained.estimators, images, samples=(METRIC_SAMPLES,), seed=0, console=console, label=name)
        for name, images in evaluation_images.items()
    }
    metrics = {
        name: measure(
            estimates[name], images.labels_B.numpy(), samples=METRIC_SAMPLES, seed=0, calibrations=calibrations
        )
        for name, images in evaluation_images.items()
    }
    folder = run.out / ARTIFACT
    card = _card(run, fit, splits, len(evaluation_images.get("test", ())), metrics)
    if calibrations:
        card["metrics"]["classes"] = measure_class_coverage(
            estimates["test"],
            data_set.test.labels_B.numpy(),
            samples=METRIC_SAMPLES,
            classes=CLASSES,
            calibrations=calibrations,
        )
    trained.save(folder, card, calibrations=calibrations, novelty=novelty, examples=_examples(data_set.test))
    if "test" in estimates:
        failures = fashion_failures(load_artifact(folder), data_set.test, estimates["test"], console=console)
        record_failures(folder, failures)
    for name, rows in metrics.items():
        for table in prediction_tables(rows, f"{len(evaluation_images[name]):,} {name} images"):
            console.print(table.as_rich())
    console.print(f"artifact {folder}, learning curves {run.out / CURVES}, log {run.out / LOG}")
    console.print(f"serve it: MCD_MODEL={shlex.quote(str(folder.resolve()))} make serve")
    if publish:
        console.print(f"in the BentoML model store: MCD_MODEL=bentoml:{_publish(folder, run)} make serve")


class _Trained:
    """A trained network: its estimators, its novelty model, and its artifact.

    The MLP is estimated as live modules, and saved with its weights; other networks are compiled first.
    """

    def __init__(self, config: MLPConfig | CNNConfig, network: nn.Sequential) -> None:
        self._config = config
        self._network = network.to(memory_format=torch.contiguous_format)
        self.estimators: Estimators[Any]
        if isinstance(config, MLPConfig):
            self.estimators = Estimators.of_chain(network)
        else:
            self._compiled = compile_to_files(network, torch.rand(FASHION_MNIST.shape))
            self.estimators = Estimators.of_compiled(self._compiled)

    def fit_novelty(self, splits: Splits) -> Novelty | FeatureNovelty | None:
        """Fit the novelty model that the network's architecture allows."""
        poses = partial(fit_poses, console=console)
        if isinstance(self._config, MLPConfig):
            return fit_novelty(self._network, splits.training, splits.calibration, poses=poses)
        return fit_graph_novelty(self.estimators.masks, splits.training, splits.calibration, poses=poses)

    def save(self, folder: Path, card: dict[str, Any], **fitted: Any) -> None:
        """Write the artifact; `fitted` are the keyword arguments of `save_artifact`."""
        if isinstance(self._config, MLPConfig):
            save_artifact(folder, self._network, self._config, card, **fitted)
        else:
            layers = {"layers": asdict(self._config)}
            save_compiled(folder, self._compiled, card | layers, input_spec=FASHION_MNIST, **fitted)


def _examples(test: Images) -> list[Example]:
    """The first image of each class, in the order of the data set."""
    labels = test.labels_B.tolist()
    return [make_example(CLASSES[label], test.images_B[labels.index(label)].numpy()) for label in dict.fromkeys(labels)]


def _card(run: Run, fit: Fit, splits: Splits, test_images: int, metrics: dict[str, Any]) -> dict[str, Any]:
    recipe = {name: value for name, value in asdict(run.recipe).items() if name != "architecture"}
    return {
        "classes": list(CLASSES),
        "input": "float in [0, 1] of shape (B, 1, 28, 28), light on dark",
        "command": run.command,
        "recipe": {"name": run.name, **recipe},
        "seed": run.seed,
        "intended_use": INTENDED_USE,
        "ethical_considerations": ETHICS,
        "data": {
            "name": "Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT License, Zalando SE)",
            "sha256": {file.name: file.sha256 for file in FILES},
            "split": {
                "train": len(splits.training),
                "validation": len(splits.validation),
                "calibration": len(splits.calibration),
                "test": test_images,
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


if __name__ == "__main__":
    app()
