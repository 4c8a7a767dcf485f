"""Adopt a network that somebody else trained: `mcd adopt package.module:factory --images FOLDER --out DIR`."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer

from model import Artifact
from model.artifact import ArtifactError
from model.input_spec import Polarity
from model.network.tracing import CompileError
from service.inference.errors import ImageError
from training.adopt.adoption import adopt
from training.adopt.detection import read_other_images
from training.adopt.errors import ImagesError, NetworkError, OutputError
from training.adopt.inputs import NORMALIZATIONS, input_spec
from training.adopt.labelled_images import find_images, read_classes
from training.adopt.model_card import FOLDER as MODEL_CARD
from training.adopt.model_card import Statements
from training.adopt.networks import load_members
from training.report import PAGE
from training.terminal import console, error_console

Normalize = StrEnum("Normalize", {name: name for name in NORMALIZATIONS})
Resizing = StrEnum("Resizing", {name: name for name in ("fit", "crop", "stretch")})
Polarities = StrEnum("Polarities", {name: name for name in get_args(Polarity)})

_OF_INPUT = ("channels", "normalize", "mean", "std", "resize", "crop_fraction", "polarity")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    context: typer.Context,
    network: Annotated[
        str,
        typer.Argument(
            help="package.module:factory, package.module:network, a .pt2 file, or an artifact.", metavar="NETWORK"
        ),
    ],
    *,
    images: Annotated[
        Path,
        typer.Option(help="Labelled images: a folder of class folders, a CSV, Parquet, .npy or IDX file."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifact.")],
    size: Annotated[
        str | None, typer.Option(help="Sides of the network's input: N, or HEIGHTxWIDTH; an artifact has its own.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels of images in an .npy or IDX file.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes, one a line, in the order of the network's outputs.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="State dict: safetensors, or saved by torch.")] = None,
    member: Annotated[
        list[Path] | None,
        typer.Option(
            help="A further network of an ensemble, whose predictions are averaged: weights for the same factory, a "
            ".pt2 file, or an artifact; once for each."
        ),
    ] = None,
    arguments: Annotated[str, typer.Option(help="Keyword arguments of the factory, a JSON object.")] = "{}",
    channels: Annotated[int, typer.Option(help="1 for grey, 3 for RGB.")] = 3,
    normalize: Annotated[Normalize, typer.Option(help="Mean and standard deviation of the network's training.")] = (
        Normalize["none"]
    ),
    mean: Annotated[str, typer.Option(help="Mean of each channel, comma-separated, instead of --normalize.")] = "",
    std: Annotated[str, typer.Option(help="Standard deviation of each channel, as --mean.")] = "",
    resize: Annotated[Resizing, typer.Option(help="How an image of another size becomes one of this size.")] = (
        Resizing["crop"]
    ),
    crop_fraction: Annotated[float, typer.Option(help="Part of the sides that `crop` keeps.")] = 0.875,
    polarity: Annotated[
        Polarities, typer.Option(help="light-on-dark inverts images with a light border.")
    ] = Polarities["any"],
    inject_dropout: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.99, help="Insert dropout before the last linear layer of a network without any."),
    ] = None,
    calibration_fraction: Annotated[
        float, typer.Option(min=0.1, max=0.9, help="Part of the images to calibrate with; the others test it.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    ood: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH of out-of-distribution images to measure the novelty score with: a folder, .npy or IDX."
        ),
    ] = None,
    poses: Annotated[
        bool,
        typer.Option(
            "--poses",
            help="Train the novelty score to find images that are turned, moved, reduced or covered: minutes more.",
        ),
    ] = False,
    intended_use: Annotated[str, typer.Option(help="What the network is for, a text for the model card.")] = "",
    pictures: Annotated[
        bool, typer.Option(help="Show test images on card and page, which everybody sees who can reach the service.")
    ] = True,
) -> None:
    """Compile a classifier with dropout, calibrate it on labelled images, and write an artifact to serve.

    What was computed is kept in OUT/progress until the artifact is written: after Ctrl-C, the same command goes on.
    """
    torch.set_num_threads(1)
    try:
        found, *others = load_members(network, arguments, weights, member or [])
        if isinstance(found, Artifact):
            _check_artifact(context, network, out, size)
        if isinstance(found, Artifact) and size is None:
            spec = found.input
        else:
            spec = input_spec(
                size, channels, normalize.value, mean, std,
                resize=resize.value, crop_fraction=crop_fraction, polarity=polarity.value,
            )  # fmt: skip
        names = found.classes if isinstance(found, Artifact) else None
        labelled = find_images(images, names if classes is None else read_classes(classes), labels)
        command = shlex.join(["mcd", "adopt", *sys.argv[1 + (sys.argv[1:2] == ["adopt"]) :]])
        adopt(
            [found, *others], labelled, spec, out,
            fraction=calibration_fraction, seed=seed, inject=inject_dropout, poses=poses,
            statements=Statements(command, intended_use, pictures), others=read_other_images(ood or []),
        )  # fmt: skip
        console.print(f"artifact {out}, model card {out / MODEL_CARD / PAGE}")
        console.print(f"serve it: MCD_MODEL={shlex.quote(str(out.resolve()))} mcd serve")
    except (
        NetworkError,
        ImagesError,
        OutputError,
        CompileError,
        ArtifactError,
        ImageError,
        ValueError,
        OSError,
    ) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        error_console.print(f"error: {' '.join(text.split())}", style="bold red")
        raise typer.Exit(1) from error
    except SystemExit as error:
        error_console.print("error: the network calls sys.exit when it computes: raise an error", style="bold red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        error_console.print("interrupted: the same command goes on", style="bold red")
        raise typer.Exit(130) from None


def _check_artifact(context: typer.Context, network: str, out: Path, size: str | None) -> None:
    """Refuse options that an artifact leaves no effect, and its own folder for the result."""
    if out.resolve() == Path(network).resolve():
        raise NetworkError(f"--out {out} is the folder of the artifact itself: give another")
    given = [
        f"--{name.replace('_', '-')}"
        for name in _OF_INPUT
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    ]
    if given and size is None:
        raise NetworkError(
            f"an artifact has its own input specification: leave out {', '.join(given)}, or give --size for another"
        )


if __name__ == "__main__":
    app()
