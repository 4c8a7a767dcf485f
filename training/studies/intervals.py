"""Means over seeds with intervals, and significance tests corrected for multiple comparisons."""

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
        """Whether the interval contains 0."""
        return abs(self.mean) <= self.half

    @property
    def pair(self) -> tuple[float, float]:
        """Mean and half width."""
        return self.mean, self.half

    def __format__(self, digits: str) -> str:
        return f"{self.mean:.{digits or 4}f} ± {self.half:.{digits or 4}f}"

    def __neg__(self) -> "Estimate":
        return Estimate(-self.mean, self.half)


def estimate(values: Array) -> Estimate:
    """Estimate mean and interval from one number for each seed."""
    return Estimate(*interval([float(value) for value in values]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    The smallest of n is multiplied by n, the next by n - 1, and so on; no adjusted value is smaller than
    the one before it.
    """
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(p) for p in adjusted]


def paired_p(one: Array, other: Array) -> float:
    """P-value of the two-sided paired t test: the probability of a mean difference at least as large by chance."""
    return float(stats.ttest_rel(one, other).pvalue)
