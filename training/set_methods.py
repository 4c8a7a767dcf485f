"""Compares the methods of prediction sets on calibration images alone: `python -m training.set_methods`."""

import numpy as np
import torch
import typer

from model import load_artifact
from model.artifact import ArtifactError
from model.calibration import SetMethod
from training.calibrate import fit_calibration
from training.data import DataError, load_fashion_mnist, split_data
from training.estimates import Estimators, estimate
from training.measure import prediction_sets
from training.recalibrate import calibration_images
from training.tables import FigureTable, format_number
from training.terminal import ArtifactArgument, DataOption, console, exit_with_error
from training.train import METRIC_SAMPLES

Array = np.ndarray

_FOLDS = 10
_REPEATS = 10

app = typer.Typer(add_completion=False)


def cross_fit(probs_BC: Array, labels_B: Array, *, seed: int) -> dict[tuple[SetMethod, float], dict[str, float]]:
    """Measure prediction sets on images that their calibration has not seen.

    A tenth of the images of each class is predicted with a calibration fitted to the others; this for each tenth, and
    for ten random splits, whose mean is returned.

    Args:
        probs_BC: mean class probabilities of labelled images, before temperature scaling.
        labels_B: their classes; of each there are ten images or more.
        seed: of the splits.

    Returns:
        By method and coverage: the shares "covered" of all images and of the "least covered class", the mean "size",
        and the shares of "empty" sets and of sets of "several" classes.
    """
    rng, rows = np.random.default_rng(seed), {}
    for _ in range(_REPEATS):
        covered_sizes: dict[tuple[SetMethod, float], Array] = {}
        fold_B = _folds(labels_B, rng)
        for fold in range(_FOLDS):
            is_left_out = fold_B == fold
            others = probs_BC[~is_left_out], np.zeros((~is_left_out).sum()), labels_B[~is_left_out]
            calibration = fit_calibration(*others, estimator="masks", samples=METRIC_SAMPLES)
            sets = prediction_sets(calibration, calibration.probabilities(probs_BC[is_left_out]))
            for method, by_coverage in sets.items():
                for coverage, members_BC in by_coverage.items():
                    found_B2 = covered_sizes.setdefault((method, coverage), np.zeros((len(labels_B), 2)))
                    covered_B1 = np.take_along_axis(members_BC, labels_B[is_left_out, None], axis=1)
                    found_B2[is_left_out] = np.hstack([covered_B1, members_BC.sum(axis=1, keepdims=True)])
        for key, found_B2 in covered_sizes.items():
            rows.setdefault(key, []).append(_measure(*found_B2.T, labels_B))
    return {
        key: {name: float(np.mean([row[name] for row in found])) for name in found[0]} for key, found in rows.items()
    }


def _folds(labels_B: Array, rng: np.random.Generator) -> Array:
    """Number of the fold of each image; each class is in all folds alike."""
    fold_B = np.empty(len(labels_B), int)
    for label in np.unique(labels_B):
        index_N = np.flatnonzero(labels_B == label)
        fold_B[index_N] = rng.permutation(len(index_N)) % _FOLDS
    return fold_B


def _measure(covered_B: Array, size_B: Array, labels_B: Array) -> dict[str, float]:
    return {
        "covered": covered_B.mean(),
        "least covered class": min(covered_B[labels_B == label].mean() for label in np.unique(labels_B)),
        "size": size_B.mean(),
        "empty": (size_B == 0).mean(),
        "several": (size_B > 1).mean(),
    }


@app.command()
def main(
    artifact: ArtifactArgument = None,
    data: DataOption = None,
) -> None:
    """Print coverage and size of the prediction sets of each method, cross-fitted on the calibration images."""
    torch.set_num_threads(1)
    try:
        loaded, fashion = load_artifact(artifact), load_fashion_mnist(data)
        images = split_data(fashion.train, images_per_part=calibration_images(loaded), validate=False).calibration
    except (DataError, ArtifactError, OSError) as error:
        exit_with_error(str(error))
    found = estimate(
        Estimators.of_artifact(loaded), images, samples=(METRIC_SAMPLES,), seed=0, console=console, label="predicting"
    )
    rows = cross_fit(found["masks", METRIC_SAMPLES]["probs_BC"], images.labels_B.numpy(), seed=0)
    columns = list(next(iter(rows.values())))
    table = FigureTable(
        f"Prediction sets, cross-fitted on {len(images):,} calibration images",
        ["method", "coverage", *columns],
        [[method, f"{coverage:g}", *map(format_number, row.values())] for (method, coverage), row in rows.items()],
        f"{METRIC_SAMPLES} masks, seed 0; mean over {_REPEATS} splits in {_FOLDS} parts",
        text_columns=1,
    )
    console.print(table.as_rich())


if __name__ == "__main__":
    app()
