"""The model card of an adopted network: what is added to card.json, and the HTML page with its plots."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model import Calibration, load_artifact
from model.artifact import write_atomically
from model.card_page import Picture
from training import plots
from training.adopt.labelled_images import LabelledImages
from training.estimates import Estimates
from training.failures import find_failures, record_failures
from training.measure import prediction_sets
from training.report import write_page

Array = np.ndarray

FOLDER = "model-card"
_COVERAGE = 0.9  # of the plotted sets
_LARGEST = 10  # set that has a bar of its own
_CAPTIONS = {
    "reliability": "Reliability: the share of correct predictions against their confidence",
    "risk-coverage": "Error among the answered images against the share of images that is answered",
    "set-sizes": f"Number of classes in prediction sets of {100 * _COVERAGE:g} % coverage",
}


@dataclass(frozen=True)
class Statements:
    """What the user says for the card.

    Attributes:
        command: the command that adopts the network.
        intended_use: what the network is for; empty if that is not known.
        pictures: whether card and page show test images.
    """

    command: str
    intended_use: str = ""
    pictures: bool = True


def write_model_card(
    out: Path,
    tested: Estimates,
    testing: LabelledImages,
    calibration: Calibration,
    *,
    pixels: Callable[[int], Array] | None,
) -> None:
    """Add known failures to the card of a saved artifact, and write `out`/model-card.

    Args:
        out: folder of the artifact.
        tested: predictions of the test images.
        testing: these images.
        calibration: of the number of masks that is reported.
        pixels: finds the pixels of a test image; None for a card without test images.
    """
    probs_NC, labels_N = tested["masks", calibration.samples]["probs_BC"], testing.labels_N
    record_failures(out, find_failures(probs_NC, labels_N, testing.classes, calibration, pixels))
    artifact, folder = load_artifact(out), out / FOLDER
    folder.mkdir(exist_ok=True)
    for name, picture in _plot(tested, labels_N, calibration).items():
        write_atomically(folder / f"{name}.png", picture)
    pictures = [Picture(f"{name}.png", caption) for name, caption in _CAPTIONS.items()]
    write_page(folder, artifact.card, artifact.failures, note="", analyses=pictures)


def _plot(tested: Estimates, labels_N: Array, calibration: Calibration) -> Mapping[str, bytes]:
    """Plot the test images: PNG file by the names of `_CAPTIONS`."""
    masks = f"{calibration.samples} masks"
    eval_NC, raw_NC = (tested[key]["probs_BC"] for key in (("eval", 0), ("masks", calibration.samples)))  # type: ignore[index]
    probs_NC = calibration.probabilities(raw_NC)
    curves = {
        name: (one_NC.max(axis=1), one_NC.argmax(axis=1) == labels_N)
        for name, one_NC in {"eval": eval_NC, masks: raw_NC, f"{masks}, calibrated": probs_NC}.items()
    }
    return {
        "reliability": plots.reliability(curves),
        "risk-coverage": plots.risk_coverage(curves),
        "set-sizes": plots.bars(_set_sizes(calibration, probs_NC), label="share of the test images"),
    }


def _set_sizes(calibration: Calibration, probs_NC: Array) -> dict[str, float]:
    """Share of the images by the number of classes in their set; none without sets of this coverage."""
    members_NC = prediction_sets(calibration, probs_NC)["lac"].get(_COVERAGE)
    if members_NC is None:
        return {}
    counts = np.bincount(members_NC.sum(axis=1).clip(max=_LARGEST), minlength=_LARGEST + 1)
    names = [str(size) for size in range(_LARGEST)] + [f"{_LARGEST} or more"]
    return {name: float(count) / len(probs_NC) for name, count in zip(names, counts, strict=True)}
