"""Adopt a network that somebody else trained: `mcd adopt package.module:factory --images FOLDER --out DIR`."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer

from model.artifact import ArtifactError
from model.input_spec import Polarity
from model.network.tracing import CompileError
from service.inference.errors import ImageError
from training.adopt.adoption import adopt
from training.adopt.inputs import NORMALIZATIONS, input_spec
from training.adopt.labelled_files import ImagesError, find_images, read_classes
from training.adopt.model_card import FOLDER as MODEL_CARD
from training.adopt.model_card import Statements
from training.adopt.networks import NetworkError, load_network
from training.report import PAGE
from training.terminal import console, error_console

Normalize = StrEnum("Normalize", {name: name for name in NORMALIZATIONS})
Resizing = StrEnum("Resizing", {name: name for name in ("fit", "crop", "stretch")})
Polarities = StrEnum("Polarities", {name: name for name in get_args(Polarity)})

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    network: Annotated[
        str, typer.Argument(help="package.module:factory, or package.module:network.", metavar="NETWORK")
    ],
    *,
    images: Annotated[
        Path, typer.Option(help="Labelled images: a folder of class folders, files named after classes, or a CSV file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifact.")],
    size: Annotated[str, typer.Option(help="Sides of the network's input: N, or HEIGHTxWIDTH.")],
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes, one a line, in the order of the network's outputs.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="State dict: safetensors, or saved by torch.")] = None,
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
    calibration_fraction: Annotated[
        float, typer.Option(min=0.1, max=0.9, help="Part of the images to calibrate with; the others test it.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    intended_use: Annotated[str, typer.Option(help="What the network is for, a text for the model card.")] = "",
    pictures: Annotated[
        bool, typer.Option(help="Show mistakes on the model card, which everybody sees who can reach the service.")
    ] = True,
) -> None:
    """Compile a classifier with dropout, calibrate it on labelled images, and write an artifact to serve.

    What was computed is kept in OUT/progress until the artifact is written: after Ctrl-C, the same command goes on.
    """
    torch.set_num_threads(1)
    try:
        spec = input_spec(
            size, channels, normalize.value, mean, std,
            resize=resize.value, crop_fraction=crop_fraction, polarity=polarity.value,
        )  # fmt: skip
        files = find_images(images, None if classes is None else read_classes(classes))
        module = load_network(network, arguments, weights)
        command = shlex.join(["mcd", "adopt", *sys.argv[1 + (sys.argv[1:2] == ["adopt"]) :]])
        said = Statements(command, intended_use, pictures)
        adopt(module, files, spec, out, fraction=calibration_fraction, seed=seed, said=said)
        console.print(f"artifact {out}, model card {out / MODEL_CARD / PAGE}")
        console.print(f"serve it: MCD_MODEL={shlex.quote(str(out.resolve()))} make serve")
    except (NetworkError, ImagesError, CompileError, ArtifactError, ImageError, ValueError, OSError) as error:
        error_console.print(f"error: {' '.join(str(error).split())}", style="bold red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        error_console.print("interrupted: the same command goes on", style="bold red")
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
