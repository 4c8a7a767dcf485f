"""What the command prints of an adopted network."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rich.progress import track
from rich.table import Table

from model.card_page.contents import detection_table
from model.network.compile import Compiled
from model.novelty import FeatureNovelty
from training.adopt.guarantees import Guarantee, images_for, is_near_chance
from training.feature_novelty import LEAST_IMAGES
from training.tables import FigureTable
from training.terminal import console

_ALMOST_ALL = 0.999


def show_progress(indices: Iterable[int], label: str) -> Iterable[int]:
    """Show the progress over indices, on a terminal."""
    return track(list(indices), label, console=console, transient=True, disable=not console.is_terminal)


def show_network(compiled: Compiled, seconds: Mapping[int, float]) -> None:
    """Print where a network has dropout, how exactly it was compiled, and what one image costs.

    Args:
        compiled: the network.
        seconds: for one image, by number of masks; 0 for eval mode.
    """
    table = Table(title="dropout")
    for column in ("place", "p", "shape of a mask"):
        table.add_column(column)
    for site in compiled.spec.sites:
        table.add_row(site.name or "the network itself", f"{site.p:g}", " x ".join(map(str, site.shape)))
    console.print(table)
    shared = compiled.spec.shared
    share = f"> {_ALMOST_ALL:.1%}" if _ALMOST_ALL < shared < 1 else f"{shared:.1%}"
    console.print(f"{share} of a forward pass is done once for all masks")
    if not math.isnan(compiled.difference):  # of an artifact's graph
        console.print(
            f"largest difference from torch {compiled.difference:.1g} of the largest logit, eval mode and 32 masks"
        )
    times = ", ".join(f"{count} masks {1000 * value:.3g} ms" for count, value in seconds.items() if count)
    console.print(f"one image on one core: eval mode {1000 * seconds[0]:.3g} ms, {times}")


def show_cost(members: int, cost: Mapping[str, float]) -> None:
    """Print how long an ensemble takes in times of one of its networks; nothing for one network."""
    if members > 1:
        times = ", ".join(f"{mode} {'masks ' if mode.isdecimal() else ''}{ratio:g}" for mode, ratio in cost.items())
        console.print(f"ensemble of {members} networks; time for one image in times of one network: {times}")


def warn_of_chance(probs_NC: np.ndarray, labels_N: np.ndarray) -> None:
    """Print a warning if a network in eval mode does little better than chance.

    Args:
        probs_NC: class probabilities of the test images.
        labels_N: their classes.
    """
    if is_near_chance(probs_NC, labels_N):
        accuracy, classes = float((probs_NC.argmax(axis=1) == labels_N).mean()), probs_NC.shape[1]
        console.print(
            f"warning: the accuracy {accuracy:.3f} is near chance, {1 / classes:.3f}: check --weights, the order of "
            "--classes, --normalize, --channels, --resize and --polarity"
        )


def show_guarantees(guarantees: Sequence[Guarantee], samples: int) -> None:
    """Print each guarantee for a number of masks, and whether it holds on the test images."""
    table = Table(title=f"guarantees, {samples} masks, on the test images")
    for column in ("guarantee", "found", "holds"):
        table.add_column(column)
    for guarantee, found, holds in guarantees:
        table.add_row(guarantee, found, "yes" if holds else "no")
    console.print(table)


def show_novelty(novelty: FeatureNovelty | None, scores_N: np.ndarray) -> None:
    """Print the false alarms among the test images, which have these scores, or why there is no score."""
    if novelty is None:
        console.print(f"no novelty score: it needs {LEAST_IMAGES} calibration images with features that differ")
        return
    for rate, threshold in novelty.thresholds.items():
        if threshold is None:
            console.print(
                f"no guarantee for {rate:.1%} false alarms of the novelty score: {images_for(1 - rate):,} calibration "
                "images are needed"
            )
        else:
            console.print(
                f"novelty: {(scores_N > threshold).mean():.1%} of the test images flagged, {rate:.1%} allowed"
            )


def show_detection(detection: Mapping[str, Mapping[str, float]]) -> None:
    """Print how well the novelty score finds images of other kinds."""
    table = detection_table({"metrics": {"ood": detection}})
    if table.rows:
        console.print(FigureTable(**vars(table)).as_rich())
