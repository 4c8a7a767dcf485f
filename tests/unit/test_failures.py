"""Known failures, compared with a search by hand over random predictions."""

import io

import numpy as np
from PIL import Image

from model import find_calibration, load_artifact
from training.failures import find_failures, side_by_side

CLASSES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
CALIBRATION = find_calibration(load_artifact().calibrations, "masks", 100)


def predictions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 3 is mostly taken for class 5."""
    rng = np.random.default_rng(seed)
    labels_B = rng.integers(0, len(CLASSES), count)
    logits_BC = rng.normal(size=(count, len(CLASSES))) + 6 * np.eye(len(CLASSES))[labels_B]
    logits_BC[labels_B == 3, 5] += 7
    probs_BC = np.exp(logits_BC)
    return probs_BC / probs_BC.sum(axis=1, keepdims=True), labels_B


def pixels(index: int) -> np.ndarray:
    return np.full((2, 2), index % 256, np.uint8)


def test_the_most_confident_mistakes_come_first():
    probs_BC, labels_B = predictions(1000, 1)
    mistakes, _ = find_failures(probs_BC, labels_B, CLASSES, CALIBRATION, pixels)
    calibrated_BC = CALIBRATION.probabilities(probs_BC)
    wrong = [k for k in range(1000) if calibrated_BC[k].argmax() != labels_B[k]]
    confident = [k for k in wrong if calibrated_BC[k].max() > 0.9]
    assert len(confident) > 6
    assert mistakes.text.startswith(f"Confident mistakes: {len(confident)} of 1,000 test images get a wrong class")
    expected = sorted(confident, key=lambda k: -calibrated_BC[k].max())[:6]
    assert [int(picture[0, 0]) for picture, _ in mistakes.pictures] == [k % 256 for k in expected]
    for k, (_, caption) in zip(expected, mistakes.pictures, strict=True):
        predicted = CLASSES[calibrated_BC[k].argmax()]
        assert caption.startswith(f"{CLASSES[labels_B[k]]}, predicted {predicted} (")


def test_the_class_that_sets_cover_worst_is_named():
    probs_BC, labels_B = predictions(500, 2)
    _, least = find_failures(probs_BC, labels_B, CLASSES, CALIBRATION, pixels)
    threshold = CALIBRATION.set_scores["lac"][0.9]
    true_B = CALIBRATION.probabilities(probs_BC)[np.arange(500), labels_B]
    covered = np.mean([1 - true_B[k] <= threshold for k in range(500) if labels_B[k] == 3])
    assert f"of the class d, {100 * covered:.1f} % have it in their prediction set, instead of 90 %" in least.text
    for picture, caption in least.pictures:
        assert caption.startswith("d, predicted ")
        assert any(labels_B[k] == 3 and 1 - true_B[k] > threshold for k in range(int(picture[0, 0]), 500, 256))


def test_nothing_is_said_without_evidence():
    probs_BC, labels_B = predictions(500, 3)
    assert len(find_failures(probs_BC, labels_B, CLASSES, None, pixels)) == 1  # no calibration, no sets
    few = labels_B != 3
    few[np.flatnonzero(~few)[:19]] = True  # of class 3
    probs_BC, labels_B = probs_BC[few], labels_B[few]
    found = find_failures(probs_BC, labels_B, CLASSES, CALIBRATION, pixels)
    assert not [one for one in found if "class d" in one.text]
    right = probs_BC.argmax(axis=1) == labels_B
    assert find_failures(probs_BC[right], labels_B[right], CLASSES, None, pixels) == []


def test_without_pictures_the_words_remain():
    probs_BC, labels_B = predictions(500, 4)
    shown = find_failures(probs_BC, labels_B, CLASSES, CALIBRATION, pixels)
    for one, other in zip(find_failures(probs_BC, labels_B, CLASSES, CALIBRATION, None), shown, strict=True):
        assert one.pictures == []
        assert one.text.endswith("%.")
        assert other.text.startswith(one.text)


def test_pictures_of_any_size_and_colour_stand_side_by_side():
    rng = np.random.default_rng(5)
    small, wide, photo = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((28, 28), (10, 20), (200, 100, 3)))
    grey = np.asarray(Image.open(io.BytesIO(side_by_side([small, wide]))))
    assert grey.shape == (28, 56)
    assert np.array_equal(grey[:, :28], small)
    assert np.array_equal(grey[9:19, 32:52], wide)
    assert grey[:9, 28:].max() == 0
    coloured = np.asarray(Image.open(io.BytesIO(side_by_side([photo, small]))))
    assert coloured.shape == (96, 192, 3)
    assert coloured[:, :24].max() == 0 < coloured[:, 24:72].max()
    assert np.array_equal(coloured[34:62, 130:158, 1], small)
