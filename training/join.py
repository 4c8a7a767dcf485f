"""Joins trained artifacts of one recipe to one artifact, an ensemble: `python -m training.join FOLDER... --out DIR`."""

import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from model import Artifact, load_artifact, save_compiled
from model.artifact import ArtifactError
from model.network import Compiled, CompileError, join_networks
from model.novelty import Novelty
from training.costs import relative_cost
from training.data import DataError, FashionMNIST, load_fashion_mnist
from training.failures import fashion_failures, record_failures
from training.recalibrate import calibration_images, recalibrate
from training.terminal import DataOption, console, exit_with_error
from training.versions import software_versions

_COPIED = ("classes", "input", "recipe", "layers", "intended_use", "ethical_considerations", "data")
_OF_MEMBER = ("seed", "command")

app = typer.Typer(add_completion=False)


def join(folders: Sequence[Path], out: Path, fashion: FashionMNIST, *, command: str = "") -> None:
    """Join artifacts of ours to an ensemble, calibrate it, and measure it on the test images.

    Calibrations are fitted to the ensemble's own predictions of the calibration images that all its networks share. The
    novelty score of MLPs is that of the first artifact, for which its layers are kept; that of other networks is fitted
    again.

    Args:
        folders: of two or more artifacts of one recipe; the first gives novelty score and examples.
        out: folder of the ensemble; new or empty; it is complete or not there.
        fashion: the data set with which they were trained.
        command: for the card.

    Raises:
        ArtifactError: an artifact can't be read, recipes or calibration images differ, or `out` is not empty.
        CompileError: the networks are not of one architecture.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"--out {out}: expected a new or an empty folder")
    if len(folders) < 2:
        raise ArtifactError(f"an ensemble needs at least two artifacts, got {len(folders)}")
    artifacts = [load_artifact(folder) for folder in folders]
    _check_alike(folders, artifacts)
    first = artifacts[0]
    compiled = join_networks([Compiled(one.engine.spec, dict(one.files), math.nan) for one in artifacts])
    cost = relative_cost(compiled.graph(), first.engine, fashion.test.inputs_B[:1].numpy())
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_compiled(
        partial,
        compiled,
        _card(artifacts, cost, command),
        novelty=first.novelty,
        examples=first.examples,
        first=first if isinstance(first.novelty, Novelty) else None,
    )
    estimates = recalibrate(partial, fashion)
    failures = fashion_failures(load_artifact(partial), fashion.test, estimates, console=console)
    record_failures(partial, failures)
    partial.replace(out)


def _check_alike(folders: Sequence[Path], artifacts: Sequence[Artifact]) -> None:
    """Refuse artifacts of other recipes, and with other calibration images, than those of the first."""
    first = artifacts[0]
    count = calibration_images(first)
    for folder, artifact in zip(folders, artifacts, strict=True):
        compared: Mapping[str, tuple[Any, Any]] = {
            "recipe": (artifact.card["recipe"], first.card["recipe"]),
            "calibration images": (calibration_images(artifact), count),
            "classes": (artifact.classes, first.classes),
        }
        for name, (found, expected) in compared.items():
            if found != expected:
                raise ArtifactError(f"{folder}: expected the {name} of {folders[0]}, {expected}, got {found}")


def _card(artifacts: Sequence[Artifact], cost: Mapping[str, float], command: str) -> dict[str, Any]:
    card = artifacts[0].card
    return {name: card[name] for name in _COPIED if name in card} | {
        "command": command,
        "members": [{name: one.card.get(name) for name in _OF_MEMBER} | {"sha256": one.sha256} for one in artifacts],
        "cost": cost,
        "metrics": {},
        "versions": software_versions(),
    }


@app.command()
def main(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of artifacts of one recipe; the first gives novelty score and examples."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the ensemble.")],
    data: DataOption = None,
) -> None:
    """Join trained artifacts to one ensemble, which is served like a single network; calibrate and measure it."""
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "training.join", *map(str, folders), "--out", str(out)])
    try:
        join(folders, out, load_fashion_mnist(data), command=command)
    except (DataError, ArtifactError, CompileError, OSError) as error:
        exit_with_error(str(error))
    console.print(f"ensemble of {len(folders)} networks: {out}")
    console.print(f"serve it: MCD_MODEL={shlex.quote(str(out.resolve()))} make serve")


if __name__ == "__main__":
    app()
