"""Converts an artifact of format 1 to the current format: compiles its network, and changes nothing else."""

from pathlib import Path
from typing import Annotated

import typer

from model.artifact import CARD, ArtifactError, load_artifact, save_artifact
from training.terminal import console, error_console

_WRITTEN = ("format", "architecture", "weights", "graph", "quadrature", "calibrations", "novelty", "examples")

app = typer.Typer(add_completion=False)


@app.command()
def main(folder: Annotated[Path, typer.Argument(help="Folder of the artifact, which is written again.")]) -> None:
    """Compile an artifact of format 1, so that it can be served without torch."""
    try:
        artifact = load_artifact(folder)
        if artifact.config is None:
            raise ArtifactError(f"{folder / CARD}: the artifact has no weights of ours, but a graph already")
        save_artifact(
            folder,
            artifact.network,
            artifact.config,
            {name: value for name, value in artifact.card.items() if name not in _WRITTEN},
            calibrations=artifact.calibrations,
            novelty=artifact.novelty,
            examples=artifact.examples,
        )
    except (ArtifactError, OSError) as error:
        error_console.print(f"error: {error}", style="bold red")
        raise typer.Exit(1) from error
    console.print(f"{folder}: format {load_artifact(folder).card['format']}")


if __name__ == "__main__":
    app()
