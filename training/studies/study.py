"""Structure of a study, and access to its results."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from training.recipes import Recipe
from training.studies.claims import Claim, markdown
from training.studies.intervals import Estimate, estimate
from training.studies.measurements import Measurement, Scale, StudyData, quality
from training.studies.stack import Stack, Variant
from training.studies.table import ResultsTable

Array = np.ndarray

TIMINGS = ("seconds", "microseconds")  # metrics that differ between runs
MAX_NETWORKS_PER_UNIT = 5  # at most, in a unit of work


@dataclass(frozen=True, kw_only=True)
class Task:
    """Input of a study's run: the variants to train, the recipe, the seed and the images."""

    data: StudyData
    recipe: Recipe
    variants: Sequence[Variant]
    seed: int


def train(task: Task) -> Stack:
    """Train the networks of a task for all epochs."""
    stack = Stack(task.variants, task.recipe, seed=task.seed)
    for _ in stack.epochs(task.data.train, task.recipe.epochs):
        pass
    return stack


def train_and_measure(task: Task) -> Iterator[Measurement]:
    """Train the networks of a task and measure their quality."""
    yield from quality(train(task), task.data)


@dataclass(frozen=True)
class Plan:
    """Size of a run: scale, number of seeds, and optionally the number of epochs of all studies."""

    scale: Scale
    seeds: int
    epochs: int | None
    quick: bool


@dataclass(frozen=True)
class Check:
    """An expected direction: `value` must exceed `tolerance`."""

    what: str
    value: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the value exceeds the tolerance."""
        return self.value > self.tolerance


@dataclass(frozen=True)
class Findings:
    """Findings of a study.

    Attributes:
        claims: statements with intervals.
        tables: Markdown tables.
        pictures: caption and PNG file by name.
        checks: expected directions.
    """

    claims: Sequence[Claim]
    tables: Sequence[str]
    pictures: Mapping[str, tuple[str, bytes]]
    checks: Sequence[Check]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question and the experiment that answers it.

    Attributes:
        name: name on the command line and in the table.
        question: the question, in one sentence.
        design: description of the experiment, with placeholders for numbers of the plan.
        limits: what the experiment can't show.
        variants: networks that are compared.
        epochs: number of epochs of the full and of the quick scale.
        schedule: schedule of the learning rate.
        learning_rate: initial learning rate; None for that of the scale.
        run: trains and measures; a variant's numbers do not depend on the other variants of the task.
        interpret: derives findings from the results.
        trained_together: whether the variants share one training, so that one unit of work contains them all.
        version: to be increased when `run` changes what it measures.
    """

    name: str
    question: str
    design: str
    limits: str
    variants: tuple[Variant, ...]
    epochs: tuple[int, int]
    schedule: Literal["constant", "linear"]
    run: Callable[[Task], Iterator[Measurement]]
    interpret: Callable[["Results"], Findings]
    learning_rate: float | None = None
    trained_together: bool = False
    version: int = 1

    def recipe(self, plan: Plan) -> Recipe:
        """Return the training recipe under a plan."""
        epochs = plan.epochs or self.epochs[plan.quick]
        rate = self.learning_rate or plan.scale.recipe.learning_rate
        return replace(plan.scale.recipe, epochs=epochs, schedule=self.schedule, learning_rate=rate)

    def key(self, variant: Variant, plan: Plan) -> str:
        """Return a digest of everything except the seed that determines a variant's numbers."""
        recipe = self.recipe(plan)
        inputs = (self.name, self.version, variant, plan.scale, recipe)
        inputs += tuple(value for value in (recipe.erase, recipe.batch_norm) if value)  # which its repr leaves out
        return hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]

    def cell(self, variant: Variant, seed: int, plan: Plan) -> tuple[str, str, int, str]:
        """Return the key of a variant's numbers in the table."""
        return self.name, variant.name, seed, self.key(variant, plan)


class Results:
    """Numbers of a study under a plan, as arrays over seeds.

    Args:
        study: the study.
        plan: the plan.
        table: contains all cells of the study.
    """

    def __init__(self, study: Study, plan: Plan, table: ResultsTable) -> None:
        self.study = study
        self.plan = plan
        self._rows = [
            row for seed in range(plan.seeds) for v in study.variants for row in table[study.cell(v, seed, plan)]
        ]

    @cached_property
    def _values(self) -> dict[tuple[str, str, int], list[float]]:
        by_place: dict[tuple[str, str, int], list[float]] = {}
        for row in self._rows:
            by_place.setdefault((row.configuration, row.metric, row.at), []).append(row.value)
        return by_place

    @property
    def names(self) -> list[str]:
        """Names of the variants."""
        return [variant.name for variant in self.study.variants]

    def values(self, name: str, metric: str, at: int = 0) -> Array:
        """Return a metric of a variant for each seed, in order."""
        return np.array(self._values[name, metric, at])

    def estimate(self, name: str, metric: str, at: int = 0) -> Estimate:
        """Estimate mean and interval of a metric."""
        return estimate(self.values(name, metric, at))

    def difference(self, one: str, other: str, metric: str, at: int = 0) -> Estimate:
        """Estimate mean and interval of `one` minus `other`, paired by seed."""
        return estimate(self.values(one, metric, at) - self.values(other, metric, at))

    def positions(self, name: str, metric: str) -> list[int]:
        """List where a metric was measured: epochs, or numbers of masks."""
        return sorted(at for found, measured, at in self._values if (found, measured) == (name, metric))

    def values_by_position(self, name: str, metric: str) -> Array:
        """Return a metric for each seed and position, (seeds, positions)."""
        return np.stack([self.values(name, metric, at) for at in self.positions(name, metric)], axis=1)

    def curve(self, name: str, metric: str) -> dict[float, tuple[float, float]]:
        """Return mean and half width of the interval by position."""
        return {at: self.estimate(name, metric, at).pair for at in self.positions(name, metric)}

    def table(self, columns: Mapping[str, str], *, first: str = "network", at: int = 0) -> str:
        """Format a Markdown table of metrics by title, for all variants that have them."""
        return markdown(
            [first, *columns],
            [
                [name, *(f"{self.estimate(name, metric, at):4}" for metric in columns.values())]
                for name in self.names
                if all((name, metric, at) in self._values for metric in columns.values())
            ],
        )

    def intervals(self, columns: Mapping[str, str]) -> dict[str, dict[str, tuple[float, float]]]:
        """Return the same numbers in the form of `plots.intervals`."""
        return {
            title: {name: self.estimate(name, metric).pair for name in self.names} for title, metric in columns.items()
        }

    def best_variants(self, metric: str, what: str, *, lowest: bool) -> list[Claim]:
        """State which variant has the best mean, which others are significantly worse, and which are not."""
        sign = 1 if lowest else -1
        best, *others = sorted(self.names, key=lambda name: sign * self.estimate(name, metric).mean)
        differences = {name: self.difference(name, best, metric) for name in others}
        distinguishable = [name for name in others if not differences[name].is_open]
        ties = [f"{name} ({differences[name]})" for name in others if differences[name].is_open]
        superlative, comparative = ("lowest", "lower") if lowest else ("highest", "higher")
        worse = (
            f"; the best of those significantly worse is {distinguishable[0]} ({differences[distinguishable[0]]})"
            if distinguishable
            else ""
        )
        claims = [Claim(f"On average, {what} is {superlative} with {best} ({self.estimate(best, metric)}){worse}.")]
        if ties:
            claims.append(
                Claim(f"whether {what} is {comparative} with {best} than with {', '.join(ties)}", is_open=True)
            )
        return claims
