"""What calibration images allow to promise."""

import numpy as np
import pytest

from training.adopt.promises import kept_promises, missing_promises
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


def test_promises_hold_on_images_of_the_same_kind():
    rows = kept_promises(calibration(2000), *simulated(2000, 2))
    assert [promise for promise, *_ in rows][:4] == [f"sets of coverage {level}" for level in (0.8, 0.9, 0.95, 0.99)]
    assert all(holds for *_, holds in rows)


def test_promises_fail_on_wrong_labels():
    probs_BC, labels_B = simulated(2000, 2)
    rows = kept_promises(calibration(2000), probs_BC, (labels_B + 1) % 5)
    assert not any(holds for *_, holds in rows)


@pytest.mark.parametrize(("images", "missing"), [(10, [0.95, 0.99]), (30, [0.99]), (150, [])])
def test_too_few_images_promise_less(images, missing):
    lines = missing_promises(calibration(images), images, "abcde", np.arange(5))
    needed = {0.95: 19, 0.99: 99}
    assert [line for line in lines if "coverage" in line] == [
        f"no sets of coverage {level}: it needs {needed[level]} calibration images, there are {images}"
        for level in missing
    ]
    assert any("no bound of 1% on wrong answers: it needs" in line for line in lines)


def test_a_network_that_always_errs_gets_no_bound():
    probs_BC, labels_B = simulated(2000, 3)
    wrong = fit_calibration(probs_BC, np.zeros(2000), (labels_B + 1) % 5, estimator="masks", samples=100)
    lines = missing_promises(wrong, 2000, "abcde", labels_B)
    assert sum("errs too often even where it is most confident" in line for line in lines) == 3


def test_classes_without_images_are_named():
    (line,) = [
        one for one in missing_promises(calibration(2000), 2000, "abcde", np.array([0, 2, 3])) if "nothing" in one
    ]
    assert line == "nothing about b, e: there are no images of these classes"
