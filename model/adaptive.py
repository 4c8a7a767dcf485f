"""As many masks as the required standard error needs."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from model.kinds import as_array
from model.masks import BLOCK
from model.uncertainty import Uncertainty

Probabilities = TypeVar("Probabilities")

_FIRST_SAMPLES = 2 * BLOCK


def sample_until(
    sample: Callable[[int], tuple[Probabilities, Uncertainty]], *, tolerance: float, max_samples: int
) -> tuple[Probabilities, Uncertainty]:
    """Sample with a growing number of masks.

    The number starts at 20 and grows, as the standard error predicts, until the standard error of the most probable
    class of every image is within the tolerance, or `max_samples` is reached.

    Args:
        sample: from a number of masks to `probs_SBC` and their summary.
        tolerance: largest acceptable standard error, above 0.
        max_samples: largest number of masks.

    Returns:
        The result of `sample` with the final number.

    Raises:
        ValueError: a tolerance of 0 or less, or as `sample` raises it.
    """
    if not tolerance > 0:
        raise ValueError(f"the tolerance must be above 0, got {tolerance}")
    samples = min(_FIRST_SAMPLES, max_samples)
    while True:
        probs_SBC, summary = sample(samples)
        error = _largest_error(summary)
        if error <= tolerance or samples == max_samples:
            return probs_SBC, summary
        excess = min(error / tolerance, max_samples)  # bounded, so that the square can't overflow
        wanted = math.ceil(samples * excess**2 / BLOCK) * BLOCK
        samples = min(max(wanted, samples + BLOCK), 4 * samples, max_samples)


def _largest_error(summary: Uncertainty) -> float:
    """Largest standard error of the images' most probable classes; 0 without images."""
    error_BC, mean_BC = as_array(summary.standard_error), as_array(summary.mean)
    tops_B1 = mean_BC.argmax(axis=1)[:, None]
    return float(np.take_along_axis(error_BC, tops_B1, axis=1).max(initial=0))
