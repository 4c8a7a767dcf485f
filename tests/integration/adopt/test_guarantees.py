"""Which guarantees calibration images allow."""

import numpy as np
import pytest

from training.adopt.guarantees import check_guarantees, images_for, is_near_chance, missing_guarantees
from training.calibrate import fit_calibration


def simulated(images: int, seed: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    probs_BC = rng.dirichlet(np.full(classes, 0.05), size=images)
    labels_B = (rng.random(images)[:, None] > probs_BC.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return probs_BC, labels_B


def calibration(images: int, seed: int = 1):
    probs_BC, labels_B = simulated(images, seed)
    return fit_calibration(probs_BC, np.zeros(images), labels_B, estimator="masks", samples=100)


def test_guarantees_hold_on_images_of_the_same_kind():
    rows = check_guarantees(calibration(2000), *simulated(2000, 2))
    assert [guarantee for guarantee, *_ in rows][:4] == [
        f"sets of coverage {level}" for level in (0.8, 0.9, 0.95, 0.99)
    ]
    assert all(holds for *_, holds in rows)


def test_guarantees_fail_on_wrong_labels():
    probs_BC, labels_B = simulated(2000, 2)
    rows = check_guarantees(calibration(2000), probs_BC, (labels_B + 1) % 5)
    assert not any(holds for *_, holds in rows)


@pytest.mark.parametrize(("images", "missing"), [(10, [0.95, 0.99]), (30, [0.99]), (150, [])])
def test_too_few_images_guarantee_less(images, missing):
    lines = missing_guarantees(calibration(images), images, "abcde", np.arange(5))
    needed = {0.95: 19, 0.99: 99}
    assert [line for line in lines if "coverage" in line and "mondrian" not in line] == [
        f"sets of coverage {level}: {needed[level]} calibration images are needed, there are {images}"
        for level in missing
    ]
    assert any("at most 1% of the answers wrong: 473 calibration images are needed" in line for line in lines)


def test_classes_with_too_few_images_for_their_own_sets_are_named():
    probs_BC, labels_B = simulated(400, 1)
    kept_B = (labels_B != 1) | (np.cumsum(labels_B == 1) <= 12)
    few = fit_calibration(probs_BC[kept_B], np.zeros(kept_B.sum()), labels_B[kept_B], estimator="masks", samples=100)
    lines = [line for line in missing_guarantees(few, 300, "abcde", labels_B) if "mondrian" in line]
    assert lines == [
        f"sets of coverage {coverage} for each class (mondrian): {needed} calibration images of a class are needed, "
        f"there are fewer of {named}"
        for coverage, needed, named in ((0.95, 19, "b"), (0.99, 99, "a, b, c, d, e"))
    ]


def test_a_network_that_always_errs_gets_no_bound():
    probs_BC, labels_B = simulated(2000, 3)
    wrong = fit_calibration(probs_BC, np.zeros(2000), (labels_B + 1) % 5, estimator="masks", samples=100)
    lines = missing_guarantees(wrong, 2000, "abcde", labels_B)
    assert sum("errs too often even where it is most confident" in line for line in lines) == 3


@pytest.mark.parametrize(
    ("classes", "images", "correct", "expected"),
    [
        (10, 1000, 125, True),
        (10, 1000, 299, True),
        (10, 1000, 300, False),
        (2, 100, 50, True),
        (2, 100, 80, False),
        (3, 10, 5, True),
        (3, 100, 60, False),
        (1000, 500, 2, True),
        (1000, 500, 3, False),
    ],
)
def test_accuracy_near_chance_is_noticed(classes, images, correct, expected):
    probs_BC = np.eye(classes)[np.zeros(images, int)]
    labels_B = np.where(np.arange(images) < correct, 0, 1)
    assert is_near_chance(probs_BC, labels_B) is expected


@pytest.mark.parametrize(("coverage", "images"), [(0.9, 9), (0.99, 99), (0.999, 999)])
def test_the_number_of_images_that_a_coverage_needs(coverage, images):
    assert images_for(coverage) == images


def test_classes_without_images_are_named():
    (line,) = [
        one for one in missing_guarantees(calibration(2000), 2000, "abcde", np.array([0, 2, 3])) if "the classes" in one
    ]
    assert line == "the classes b, e: there are no images of them"
