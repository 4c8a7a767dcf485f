"""Measure an artifact on the 10,000 test images: `python -m training.evaluate`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import nn

from model import Artifact, load_artifact
from model.artifact import write_atomically
from model.calibration import COVERAGES, Calibration, SetMethod, find_calibration
from model.chain import Chain
from model.dropout import MAX_SEED
from training.calibrate import Estimates, estimate
from training.data import DataError, Images, load_fashion_mnist
from training.metrics import scores
from training.ood import built_in, read_images, separation
from training.report import write_report

Array = np.ndarray

_FALSE_ALARM_RATE = 0.01
_UNIFORM_SEED = 1  # not that of the calibration

app = typer.Typer(add_completion=False)
console = Console(highlight=False, soft_wrap=True, markup=False)
errors = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)


def evaluate(
    network: nn.Sequential,
    images: Images,
    *,
    samples: int,
    seed: int,
    calibrations: Sequence[Calibration] = (),
) -> dict[str, Any]:
    """Measure the eval-mode prediction, the mean over dropout masks, and moments on labelled images.

    Args:
        network: from images in [0, 1] to logits; linear layers, ReLU and dropout.
        images: test images.
        samples: masks of the Monte-Carlo prediction.
        seed: of the masks.
        calibrations: of the network.

    Returns:
        For "eval", "mc" and "moments": `scores`, and mean predictive entropy in nats; but in eval mode also the mean
        mutual information; for "mc" samples and seed. Where there is a calibration, `calibrated_scores` as
        "calibrated".
    """
    estimates = estimate(network, images, samples=(samples,), seed=seed, console=console)
    return measure(estimates, images.labels_B.numpy(), seed=seed, calibrations=calibrations)


def measure(
    estimates: Estimates, labels_B: Array, *, seed: int, calibrations: Sequence[Calibration] = ()
) -> dict[str, Any]:
    """Do what `evaluate` does, of estimates that were made with a seed."""
    metrics: dict[str, Any] = {}
    for (estimator, count), found in estimates.items():
        row: dict[str, Any] = {"samples": count, "seed": seed} if estimator == "masks" else {}
        probs_BC = found["probs_BC"]
        row |= scores(probs_BC, labels_B) | {"entropy": float(stats.entropy(probs_BC, axis=1).mean())}
        if estimator != "eval":
            row["mutual_information"] = float(found["information_B"].mean())
        calibration = find_calibration(calibrations, estimator, count)
        if calibration is not None:
            row["calibrated"] = calibrated_scores(calibration, probs_BC, labels_B)
        metrics["mc" if estimator == "masks" else estimator] = row
    return metrics


def calibrated_scores(calibration: Calibration, probs_BC: Array, labels_B: Array) -> dict[str, Any]:
    """Measure what a calibration promises.

    Returns:
        `scores` of the calibrated probabilities; for each method and coverage of prediction sets, by which part of
        images they hold the true class, and their mean size; for each risk, which part of images is answered, and which
        part of the answers is wrong.
    """
    probs_BC = calibration.probabilities(probs_BC)
    uniform_B = np.random.default_rng(_UNIFORM_SEED).random(len(labels_B))
    sets: dict[str, dict[str, dict[str, float]]] = {}
    for method in get_args(SetMethod):
        sets[method] = {}
        for coverage in COVERAGES:
            members_BC = calibration.prediction_set(probs_BC, uniform_B, coverage=coverage, method=method)
            if members_BC is not None:
                covered = members_BC[np.arange(len(labels_B)), labels_B].mean()
                sets[method][str(coverage)] = {"covered": float(covered), "size": float(members_BC.sum(axis=1).mean())}
    confidence_B, wrong_B = probs_BC.max(axis=1), probs_BC.argmax(axis=1) != labels_B
    answered = {}
    for risk, least in calibration.confidences.items():
        is_answered_B = confidence_B >= (np.inf if least is None else least)
        error = float(wrong_B[is_answered_B].mean()) if is_answered_B.any() else 0.0
        answered[str(risk)] = {"answered": float(is_answered_B.mean()), "error": error}
    return scores(probs_BC, labels_B) | {"prediction_sets": sets, "max_risk": answered}


def novelty_scores(artifact: Artifact, images: Images, estimates: Estimates) -> dict[str, Array]:
    """Score how unlike the training's images are, by each estimator's doubts and by the artifact's novelty score.

    Args:
        artifact: the model.
        images: to score.
        estimates: of these images, for one number of masks.
    """
    (found,) = [row for (estimator, _), row in estimates.items() if estimator == "masks"]
    scored = {
        "entropy, eval": stats.entropy(estimates["eval", 0]["probs_BC"], axis=1),
        "entropy, mc": stats.entropy(found["probs_BC"], axis=1),
        "mutual information, mc": found["information_B"],
        "mutual information, moments": estimates["moments", 0]["information_B"],
    }
    if artifact.novelty is not None:
        chain = Chain(artifact.network)
        parts = [artifact.novelty.score(chain, part.numpy()) for part in images.inputs_B.split(5_000)]
        scored["novelty"] = np.concatenate(parts)
    return scored


def told_apart(
    artifact: Artifact, inside: Mapping[str, Array], outside: Mapping[str, Array]
) -> dict[str, dict[str, float]]:
    """Measure by score how well images that are no clothing are told from those that are.

    Returns:
        `separation`; of "novelty" also "flagged", the part that counts as novel.
    """
    found = {score: separation(inside[score], values_B) for score, values_B in outside.items()}
    if artifact.novelty is not None:
        threshold = artifact.novelty.thresholds[_FALSE_ALARM_RATE]
        flagged_B = outside["novelty"] > (np.inf if threshold is None else threshold)
        found["novelty"]["flagged"] = float(flagged_B.mean())
    return found


def print_ood(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print what `evaluate_ood` returned."""
    table = Table(title="Told from the test images", caption="flagged: counted as novel, at a false-alarm rate of 1 %")
    for column in ("images", "score", "AUROC", "AUPR", "FPR95", "flagged"):
        table.add_column(column, justify="left" if column in {"images", "score"} else "right")
    for name, by_score in found.items():
        for score, row in by_score.items():
            numbers = [row.get(key) for key in ("auroc", "aupr", "fpr95", "flagged")]
            table.add_row(name, score, *("" if number is None else f"{number:.3f}" for number in numbers))
    console.print(table)


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """Print what `evaluate` returned as a table."""
    masks = metrics["mc"]
    caption = f"mc: {masks['samples']} masks, seed {masks['seed']}; NLL, entropy, mutual information (MI) in nats"
    table = Table(title=title, caption=caption)
    for column in ("mode", "accuracy", "NLL", "Brier", "ECE", "entropy", "MI"):
        table.add_column(column, justify="right")
    for mode, row in metrics.items():
        table.add_row(mode, *_cells(row))
        if "calibrated" in row:
            table.add_row(f"{mode}, calibrated", *_cells(row["calibrated"]))
    console.print(table)


def print_promises(metrics: dict[str, Any]) -> None:
    """Print how well the calibrated promises of `evaluate` are kept, if there are any."""
    if "calibrated" not in metrics["mc"]:
        return
    promised = metrics["mc"]["calibrated"]
    sets = Table(title="Prediction sets, mc")
    for column in ("method", "coverage asked for", "found", "classes in a set"):
        sets.add_column(column, justify="right")
    for method, by_coverage in promised["prediction_sets"].items():
        for coverage, found in by_coverage.items():
            sets.add_row(method, coverage, f"{found['covered']:.3f}", f"{found['size']:.3f}")
    answers = Table(title="Abstention, mc")
    for column in ("risk accepted", "wrong among the answered", "answered"):
        answers.add_column(column, justify="right")
    for risk, found in promised["max_risk"].items():
        answers.add_row(risk, f"{found['error']:.3f}", f"{found['answered']:.3f}")
    console.print(sets)
    console.print(answers)


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [row.get(name) for name in ("accuracy", "nll", "brier", "ece", "entropy", "mutual_information")]
    return ["" if number is None else f"{number:.4f}" for number in numbers]


@app.command()
def main(
    artifact: Annotated[
        Path | None, typer.Argument(help="Folder of the artifact; the embedded default if none.")
    ] = None,
    *,
    samples: Annotated[int, typer.Option(min=2, help="Dropout masks.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the masks.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder of Fashion-MNIST; else found as for training.")] = None,
    ood: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of images that are no clothing: IDX, .npy, or a folder.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file too.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a model card in HTML, with pictures.")] = None,
) -> None:
    """Measure accuracy, likelihood and uncertainty of an artifact on the test images of Fashion-MNIST."""
    torch.set_num_threads(1)  # one image at a time: too small to share
    try:
        if out is not None and not out.parent.is_dir():
            raise FileNotFoundError(f"--out: there is no folder {out.parent}")
        loaded, test = load_artifact(artifact), load_fashion_mnist(data).test
        outside = built_in(test.images_B.numpy()) | dict(map(_named_images, ood or []))

        def estimates_of(images: Images) -> Estimates:
            return estimate(loaded.network, images, samples=(samples,), seed=seed, console=console)

        estimates = estimates_of(test)
        metrics = measure(estimates, test.labels_B.numpy(), seed=seed, calibrations=loaded.calibrations)
        inside = novelty_scores(loaded, test, estimates)
        scored = {
            name: novelty_scores(loaded, images, estimates_of(images))
            for name, images in ((name, _unlabelled(array_BHW)) for name, array_BHW in outside.items())
        }
        strange = {name: told_apart(loaded, inside, values) for name, values in scored.items()}
        if out is not None:
            write_atomically(out, (json.dumps(metrics | {"ood": strange}, indent=2) + "\n").encode())
        if report is not None:
            write_report(report, loaded, test, estimates, {"test images": inside, **scored}, metrics, strange)
    except (DataError, OSError, TypeError, ValueError) as error:
        errors.print(f"error: {error}", style="bold red")
        raise typer.Exit(1) from error
    print_metrics(metrics, f"{len(test):,} test images")
    print_promises(metrics)
    print_ood(strange)


def _unlabelled(images_BHW: Array) -> Images:
    return Images(torch.from_numpy(images_BHW.copy()), torch.zeros(len(images_BHW)).long())


def _named_images(given: str) -> tuple[str, Array]:
    name, equals, path = given.partition("=")
    if not (name and equals and path):
        raise ValueError(f"--ood: expected NAME=PATH, got {given}")
    return name, read_images(Path(path))


if __name__ == "__main__":
    app()
