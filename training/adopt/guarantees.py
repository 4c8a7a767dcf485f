"""Which guarantees a calibration gives, and whether they hold on test images."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from model.calibration import COVERAGES, RISKS, Calibration
from training.adopt.wording import first_of
from training.calibrate import conformal_quantile, least_images
from training.measure import prediction_sets

Array = np.ndarray
Guarantee = tuple[str, str, bool]  # what is guaranteed, what was found, and whether it holds

_CONFIDENCE = 0.95  # of the intervals
_MANY_CLASSES = 10


def check_guarantees(calibration: Calibration, probs_BC: Array, labels_B: Array) -> list[Guarantee]:
    """Compare each guarantee of a calibration with labelled test images.

    Args:
        calibration: fitted to other images.
        probs_BC: mean class probabilities of the test images, before temperature scaling.
        labels_B: their classes.

    Returns:
        Guarantee, what was found, and whether that is within the binomial interval of 95 % around it, or better.
    """
    probs_BC = calibration.probabilities(probs_BC)
    rows = []
    for coverage, members_BC in prediction_sets(calibration, probs_BC)["lac"].items():
        covered_B = np.take_along_axis(members_BC, labels_B[:, None], axis=1)[:, 0]
        low, high = stats.binom.interval(_CONFIDENCE, len(labels_B), coverage)
        expected = f"{low / len(labels_B):.3f} to {high / len(labels_B):.3f} expected"
        found = f"{covered_B.mean():.3f} covered ({expected}), {members_BC.sum(axis=1).mean():.2f} classes a set"
        rows.append((f"sets of coverage {coverage:g}", found, bool(covered_B.sum() >= low)))
    confidence_B, wrong_B = probs_BC.max(axis=1), probs_BC.argmax(axis=1) != labels_B
    for risk in RISKS:
        answered_B = calibration.is_answered(confidence_B, risk=risk)
        if calibration.confidences[risk] is not None and answered_B.any():
            high = stats.binom.ppf((1 + _CONFIDENCE) / 2, int(answered_B.sum()), risk)
            rows.append(
                (
                    f"at most {risk:.0%} of the answers wrong",
                    f"{wrong_B[answered_B].mean():.3f} wrong, {answered_B.mean():.3f} answered",
                    bool(wrong_B[answered_B].sum() <= high),
                )
            )
    return rows


def is_near_chance(probs_BC: Array, labels_B: Array) -> bool:
    """Whether the accuracy is hardly above that of guesses: three times it, or in its binomial interval of 95 %.

    Three times are counted of ten classes or more.
    """
    images, classes = probs_BC.shape
    correct = int((probs_BC.argmax(axis=1) == labels_B).sum())
    largest = stats.binom.ppf((1 + _CONFIDENCE) / 2, images, 1 / classes)
    return bool(correct <= largest or (classes >= _MANY_CLASSES and correct < 3 * images / classes))


def images_for(coverage: float) -> int:
    """Smallest number of calibration images that gives a conformal quantile of this coverage."""
    return next(n for n in itertools.count(1) if conformal_quantile(np.zeros(n), coverage) is not None)


def guarantees_as_json(guarantees: Sequence[Guarantee], missing: Sequence[str]) -> dict[str, Any]:
    """Describe the guarantees that were tested, and those that can't be given, for the card."""
    names = ("guarantee", "found", "holds")
    return {"tested": [dict(zip(names, row, strict=True)) for row in guarantees], "missing": list(missing)}


def _classes_without_sets(calibration: Calibration, coverage: float, classes: Sequence[str]) -> list[str]:
    """Name the classes that have too few calibration images for label-conditional sets of a coverage."""
    if calibration.set_scores["mondrian"][coverage] is None:
        return list(classes)
    return [classes[index] for index in calibration.classes_without_threshold(coverage)]


def missing_guarantees(calibration: Calibration, images: int, classes: Sequence[str], labels_B: Array) -> list[str]:
    """Name the guarantees that a calibration can't give, each with the reason.

    Args:
        calibration: fitted to `images` images.
        images: their number.
        classes: names of the classes.
        labels_B: the classes of all images at hand.
    """
    lines = []
    for coverage in COVERAGES:
        if calibration.set_scores["lac"][coverage] is None:
            needed = images_for(coverage)
            lines.append(f"sets of coverage {coverage:g}: {needed} calibration images are needed, there are {images}")
    lines += [
        f"sets of coverage {coverage:g} for each class (mondrian): {images_for(coverage)} calibration images of a "
        f"class are needed, there are fewer of {first_of(few)}"
        for coverage in COVERAGES
        if (few := _classes_without_sets(calibration, coverage, classes))
    ]
    for risk in RISKS:
        if calibration.confidences[risk] is None:
            few = f"{least_images(risk)} calibration images are needed, there are {images}"
            unsure = "the network errs too often even where it is most confident"
            lines.append(f"at most {risk:.0%} of the answers wrong: {few if images < least_images(risk) else unsure}")
    if absent := [name for index, name in enumerate(classes) if not (labels_B == index).any()]:
        lines.append(f"the classes {first_of(absent)}: there are no images of them")
    return lines
