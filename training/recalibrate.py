"""Calibrates artifacts of ours again without training: `python -m training.recalibrate FOLDER...`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from model import Artifact, load_artifact
from model.artifact import ArtifactError, add_to_card
from model.novelty import FeatureNovelty, Novelty
from training.calibrate import fit_calibrations
from training.data import DataError, FashionMNIST, load_fashion_mnist, split_data
from training.estimates import Estimates, Estimators, estimate
from training.failures import fashion_failures, record_failures
from training.feature_novelty import fit_graph_novelty
from training.measure import measure, measure_class_coverage
from training.novelty import fit_novelty
from training.poses import fit_poses
from training.recipes import RECIPES
from training.terminal import DataOption, console, exit_with_error
from training.train import METRIC_SAMPLES

app = typer.Typer(add_completion=False)


def recalibrate(folder: Path, fashion: FashionMNIST) -> Estimates:
    """Fit calibrations and novelty score of an artifact, measure it on the test images, and write all into its card.

    Calibration images, masks and random numbers are those of the training run, so what is fitted as it was then has the
    same numbers. The network stays as it is, and so does the novelty score of an ensemble of MLPs, which is that of its
    first network.

    Args:
        folder: of the artifact.
        fashion: the data set that it was trained with.

    Returns:
        Its predictions of the test images.

    Raises:
        ArtifactError: it can't be read, or see `calibration_images`.
    """
    artifact = load_artifact(folder)
    count = calibration_images(artifact)
    estimators, labels_B = Estimators.of_artifact(artifact), fashion.test.labels_B.numpy()
    splits = split_data(fashion.train, images_per_part=count, validate=False)
    calibrations = fit_calibrations([estimators], splits.calibration, console=console)
    novelty: Novelty | FeatureNovelty | None = None
    poses = partial(fit_poses, console=console)
    if isinstance(artifact.novelty, Novelty):
        if artifact.members == 1:
            novelty = fit_novelty(artifact.network, splits.training, splits.calibration, poses=poses)
    elif artifact.novelty is not None:
        novelty = fit_graph_novelty(artifact.engine, splits.training, splits.calibration, poses=poses)
    estimates = estimate(
        estimators, fashion.test, samples=(METRIC_SAMPLES,), seed=0, console=console, label="test images"
    )
    measured = {
        "test": measure(estimates, labels_B, samples=METRIC_SAMPLES, seed=0, calibrations=calibrations),
        "classes": measure_class_coverage(
            estimates, labels_B, samples=METRIC_SAMPLES, classes=artifact.classes, calibrations=calibrations
        ),
    }
    fitted = [calibration.to_json() for calibration in calibrations]
    add_to_card(folder, {"calibrations": fitted, "metrics": artifact.card["metrics"] | measured}, novelty=novelty)
    if "failures" in artifact.card:
        record_failures(folder, fashion_failures(load_artifact(folder), fashion.test, estimates, console=console))
    return estimates


def calibration_images(artifact: Artifact) -> int:
    """Find the number of calibration images of the training run of an artifact of ours.

    Raises:
        ArtifactError: it is not of a recipe of ours, or was trained without calibration images or to choose a recipe.
    """
    recipe, split = artifact.card.get("recipe", {}), artifact.card.get("data", {}).get("split", {})
    if recipe.get("name") not in RECIPES:
        raise ArtifactError(f"recipe: expected {' or '.join(RECIPES)}, got {recipe.get('name')!r}: use mcd adopt")
    if not split.get("calibration") or split.get("validation"):
        raise ArtifactError(f"data.split: expected calibration and no validation images, got {split}")
    return int(split["calibration"])


@app.command()
def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders of artifacts, whose cards are written again.")],
    data: DataOption = None,
) -> None:
    """Fit calibrations and novelty score of trained artifacts again, and measure them on the test images."""
    torch.set_num_threads(1)
    try:
        fashion = load_fashion_mnist(data)
        for folder in folders:
            recalibrate(folder, fashion)
            console.print(f"{folder}: calibrated")
    except (DataError, ArtifactError, OSError) as error:
        exit_with_error(str(error))


if __name__ == "__main__":
    app()
