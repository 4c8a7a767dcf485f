"""Known failures of a network, with pictures: among what the model card opens with."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from model import Artifact, Calibration, find_calibration
from model.artifact import add_to_card
from model.card_page.contents import percent
from training.data import Images
from training.estimates import Estimates, Estimators, estimate
from training.measure import decide, measure_decisions, ood_scores, prediction_sets
from training.shifts import rotate

Array = np.ndarray
Pixels = Callable[[int], Array]  # uint8 (H, W) or (H, W, 3), by index of the image

_SHOWN = 6  # pictures of each kind
_SIDE = 96  # of a picture at most, in pixels
_CONFIDENT = 0.9
_COVERAGE = 0.9
_LEAST_IMAGES = 20  # of a class, to say something about it
_SHORTFALL = 0.05  # of a class's coverage that is worth saying
_DEGREES = 90


@dataclass(frozen=True)
class Failure:
    """A kind of failure.

    Attributes:
        text: what happens how often.
        pictures: uint8 (H, W) or (H, W, 3), each with its caption.
    """

    text: str
    pictures: Sequence[tuple[Array, str]]


def find_failures(
    probs_BC: Array, labels_B: Array, classes: Sequence[str], calibration: Calibration | None, pixels: Pixels | None
) -> list[Failure]:
    """Find confident mistakes, and the class that prediction sets cover worst.

    Args:
        probs_BC: mean class probabilities of the test images, before calibration.
        labels_B: their classes.
        classes: names of the classes.
        calibration: of these probabilities; None if there is none.
        pixels: finds the pixels of a test image; None for no pictures.
    """
    sets = {}
    if calibration is not None:
        probs_BC = calibration.probabilities(probs_BC)
        sets = prediction_sets(calibration, probs_BC)["lac"]
    show = _shower(probs_BC, labels_B, classes, pixels)
    failures = _confident_mistakes(probs_BC, labels_B, show)
    if _COVERAGE in sets:
        failures += _least_covered_class(sets[_COVERAGE], probs_BC, labels_B, classes, show)
    return failures


def fashion_failures(artifact: Artifact, test: Images, estimates: Estimates, *, console: Console) -> list[Failure]:
    """Find the failures of a network of ours: those of `find_failures`, and rotation.

    Args:
        artifact: the network.
        test: test images of Fashion-MNIST.
        estimates: predictions of them.
        console: console for the progress bar.
    """
    samples = max(count for _, count in estimates)
    found = find_failures(
        estimates["masks", samples]["probs_BC"],
        test.labels_B.numpy(),
        artifact.classes,
        find_calibration(artifact.calibrations, "masks", samples),
        lambda index: test.images_B[index].numpy(),
    )
    return [*found, _rotation(artifact, test, samples, console)]


def record_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """Add failures to the card of a saved artifact."""
    kinds = [{"text": one.text, "images": [caption for _, caption in one.pictures]} for one in failures]
    pictures = [pixels for one in failures for pixels, _ in one.pictures]
    add_to_card(folder, {}, failures=kinds, pictures=side_by_side(pictures) if pictures else b"")


def side_by_side(pictures: Sequence[Array]) -> bytes:
    """Make a PNG file of square pictures in a row; larger ones are reduced to 96 pixels, others are padded with black.

    Args:
        pictures: uint8 (H, W) or (H, W, 3).
    """
    small = [Image.fromarray(pixels) for pixels in pictures]
    for one in small:
        one.thumbnail((_SIDE, _SIDE))
    side = max(max(one.size) for one in small)
    row = Image.new("RGB" if any(one.mode == "RGB" for one in small) else "L", (side * len(small), side))
    for place, one in enumerate(small):
        row.paste(one, (place * side + (side - one.width) // 2, (side - one.height) // 2))
    file = io.BytesIO()
    row.save(file, "PNG", optimize=True)
    return file.getvalue()


def _confident_mistakes(probs_BC: Array, labels_B: Array, show: "Shower") -> list[Failure]:
    wrong_B = probs_BC.argmax(axis=1) != labels_B
    if not wrong_B.any():
        return []
    confident_B = wrong_B & (probs_BC.max(axis=1) > _CONFIDENT)
    count = int(confident_B.sum())
    text = (
        f"Confident mistakes: {count:,} of {len(labels_B):,} test images get a wrong class with a confidence above "
        f"{100 * _CONFIDENT:g} %."
    )
    return [_failure(text, "The most confident:", show(_by_confidence(probs_BC, confident_B if count else wrong_B)))]


def _least_covered_class(
    members_BC: Array, probs_BC: Array, labels_B: Array, classes: Sequence[str], show: "Shower"
) -> list[Failure]:
    covered_B = np.take_along_axis(members_BC, labels_B[:, None], axis=1)[:, 0]
    by_class = {
        label: float(covered_B[labels_B == label].mean())
        for label, count in enumerate(np.bincount(labels_B, minlength=len(classes)))
        if count >= _LEAST_IMAGES
    }
    worst = min(by_class, key=by_class.__getitem__, default=None)
    if worst is None or by_class[worst] > _COVERAGE - _SHORTFALL:
        return []
    covered = percent(by_class[worst])
    text = (
        f"Coverage by class: of the test images of the class {classes[worst]}, {covered} have it in their "
        f"prediction set, instead of {100 * _COVERAGE:g} %."
    )
    shown = show(_by_confidence(probs_BC, ~covered_B & (labels_B == worst)))
    return [_failure(text, "Images whose set leaves it out:", shown)]


def _rotation(artifact: Artifact, test: Images, samples: int, console: Console) -> Failure:
    """Find what the network makes of clothes that lie on their side; at most one picture of each class."""
    rotated, labels_B = rotate(test, _DEGREES), test.labels_B.numpy()
    label = f"rotated by {_DEGREES} degrees"
    estimates = estimate(
        Estimators.of_artifact(artifact), rotated, samples=(samples,), seed=0, console=console, label=label
    )
    probs_BC = estimates["masks", samples]["probs_BC"]
    calibration = find_calibration(artifact.calibrations, "masks", samples)
    probs_BC = probs_BC if calibration is None else calibration.probabilities(probs_BC)
    wrong_B = probs_BC.argmax(axis=1) != labels_B
    scores = ood_scores(artifact, rotated, estimates, samples=samples)
    decided = decide(artifact, estimates, scores, samples=samples)
    text = f"Rotation: of the test images rotated by {_DEGREES}°, {percent(float(wrong_B.mean()))} get a wrong class"
    if decided is not None:
        found = measure_decisions(decided, estimates, labels_B, samples=samples)
        text += (
            f". {percent(found['answered'])} are answered, and {percent(found.get('error'))} of these answers are wrong"
        )
        wrong_B = wrong_B & decided["answered"]
    order = _by_confidence(probs_BC, wrong_B)
    _, firsts = np.unique(labels_B[order], return_index=True)
    show = _shower(probs_BC, labels_B, artifact.classes, lambda index: rotated.images_B[index].numpy())
    return _failure(f"{text}.", "The most confident mistakes, one of each class:", show(order[np.sort(firsts)]))


def _failure(text: str, introduction: str, shown: Sequence[tuple[Array, str]]) -> Failure:
    return Failure(f"{text} {introduction}" if shown else text, shown)


Shower = Callable[[Array], list[tuple[Array, str]]]


def _shower(probs_BC: Array, labels_B: Array, classes: Sequence[str], pixels: Pixels | None) -> Shower:
    """Make a function that finds pictures and captions of the first images of an order."""

    def caption(index: int) -> str:
        predicted = probs_BC[index].argmax()
        confidence = percent(float(probs_BC[index, predicted]))
        return f"{classes[labels_B[index]]}, predicted {classes[predicted]} ({confidence})"

    def show(order: Array) -> list[tuple[Array, str]]:
        if pixels is None:
            return []
        return [(pixels(index), caption(index)) for index in order[:_SHOWN].tolist()]

    return show


def _by_confidence(probs_BC: Array, chosen_B: Array) -> Array:
    """Indices of the chosen images, the most confident first."""
    indices = np.flatnonzero(chosen_B)
    return indices[np.argsort(-probs_BC[indices].max(axis=1), kind="stable")]
