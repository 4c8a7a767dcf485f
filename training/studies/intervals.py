"""Means over seeds, how well they are known, and tests that many tries don't mislead."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from training.compare import interval

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, and half the width of its 95 % interval by Student's t distribution."""

    mean: float
    half: float

    @property
    def is_open(self) -> bool:
        """Whether the interval holds 0."""
        return abs(self.mean) <= self.half

    @property
    def pair(self) -> tuple[float, float]:
        """Both numbers."""
        return self.mean, self.half

    def __format__(self, digits: str) -> str:
        return f"{self.mean:.{digits or 4}f} ± {self.half:.{digits or 4}f}"

    def __neg__(self) -> "Estimate":
        return Estimate(-self.mean, self.half)


def estimate(values: Array) -> Estimate:
    """Mean and interval of one number for each seed."""
    return Estimate(*interval([float(value) for value in values]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    The smallest of n is multiplied by n, the next by n - 1, and so on; none becomes smaller than one before it.
    """
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(p) for p in adjusted]


def paired_p(one: Array, other: Array) -> float:
    """P-value of the paired t test, two-sided: how often as large a mean difference comes about by chance."""
    return float(stats.ttest_rel(one, other).pvalue)
