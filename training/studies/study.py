"""What a study consists of, and what it reads from the table."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from training.recipes import Recipe
from training.studies.claims import Claim, markdown
from training.studies.intervals import Estimate, estimate
from training.studies.lab import Lab, Measurement, Scale, quality
from training.studies.stack import Stack, Variant
from training.studies.table import Table

Array = np.ndarray

TIMINGS = ("seconds", "microseconds")  # metrics that no two runs share
TOGETHER = 5  # networks of a unit of work at most


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a study's run has to do: train these variants for so many epochs by a recipe, with a seed."""

    lab: Lab
    recipe: Recipe
    variants: Sequence[Variant]
    seed: int


def train(task: Task) -> Stack:
    """Train a task's networks to the end."""
    stack = Stack(task.variants, task.recipe, seed=task.seed)
    for _ in stack.epochs(task.lab.train, task.recipe.epochs):
        pass
    return stack


def train_and_measure(task: Task) -> Iterator[Measurement]:
    """Train a task's networks, and measure what they are worth."""
    yield from quality(train(task), task.lab)


@dataclass(frozen=True)
class Plan:
    """How much is done: the scale, how many seeds, and how many epochs instead of each study's own."""

    scale: Scale
    seeds: int
    epochs: int | None
    quick: bool


@dataclass(frozen=True)
class Check:
    """A direction that must hold: a number that lies above what is tolerated."""

    what: str
    value: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.value > self.tolerance


@dataclass(frozen=True)
class Findings:
    """What a study shows.

    Attributes:
        claims: with their intervals.
        tables: in Markdown.
        pictures: caption and PNG file by name.
        checks: directions that must hold.
    """

    claims: Sequence[Claim]
    tables: Sequence[str]
    pictures: Mapping[str, tuple[str, bytes]]
    checks: Sequence[Check]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question and the experiment that answers it.

    Attributes:
        name: by which it is asked for.
        question: in one sentence.
        design: what is done; numbers of the plan are filled in.
        limits: what it can't show.
        variants: networks that are compared.
        epochs: of the full scale, and of the quick one.
        schedule: of the learning rate.
        learning_rate: the first, where it isn't the scale's.
        run: trains and measures; every variant gets the same numbers, whatever others are in the task.
        find: reads results, and says what they show.
        whole: whether variants share one training, so that a unit of work has them all.
        version: to be raised when `run` changes what it measures.
    """

    name: str
    question: str
    design: str
    limits: str
    variants: tuple[Variant, ...]
    epochs: tuple[int, int]
    schedule: Literal["constant", "linear"]
    run: Callable[[Task], Iterator[Measurement]]
    find: Callable[["Results"], Findings]
    learning_rate: float | None = None
    whole: bool = False
    version: int = 1

    def recipe(self, plan: Plan) -> Recipe:
        """How it trains under a plan."""
        epochs = plan.epochs or self.epochs[plan.quick]
        rate = self.learning_rate or plan.scale.recipe.learning_rate
        return replace(plan.scale.recipe, epochs=epochs, schedule=self.schedule, learning_rate=rate)

    def key(self, variant: Variant, plan: Plan) -> str:
        """Digest of all that decides a variant's numbers but the seed."""
        told = (self.name, self.version, variant, plan.scale, self.recipe(plan))
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]

    def cell(self, variant: Variant, seed: int, plan: Plan) -> tuple[str, str, int, str]:
        """Where a variant's numbers stand in the table."""
        return self.name, variant.name, seed, self.key(variant, plan)


class Results:
    """A study's numbers under a plan, an array over seeds each.

    Args:
        study: whose.
        plan: under which.
        table: has all its cells.
    """

    def __init__(self, study: Study, plan: Plan, table: Table) -> None:
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
        """Of the variants."""
        return [variant.name for variant in self.study.variants]

    def values(self, name: str, metric: str, at: int = 0) -> Array:
        """A number of a variant for each seed, in their order."""
        return np.array(self._values[name, metric, at])

    def estimate(self, name: str, metric: str, at: int = 0) -> Estimate:
        """Its mean and interval."""
        return estimate(self.values(name, metric, at))

    def difference(self, one: str, other: str, metric: str, at: int = 0) -> Estimate:
        """Mean and interval of `one` less `other`, seed by seed."""
        return estimate(self.values(one, metric, at) - self.values(other, metric, at))

    def places(self, name: str, metric: str) -> list[int]:
        """Where a number was measured: epochs, or numbers of masks."""
        return sorted(at for found, measured, at in self._values if (found, measured) == (name, metric))

    def over_places(self, name: str, metric: str) -> Array:
        """A number for each seed and place."""
        return np.stack([self.values(name, metric, at) for at in self.places(name, metric)], axis=1)

    def curve(self, name: str, metric: str) -> dict[float, tuple[float, float]]:
        """Mean and interval by place."""
        return {at: self.estimate(name, metric, at).pair for at in self.places(name, metric)}

    def table(self, columns: Mapping[str, str], *, first: str = "network", at: int = 0) -> str:
        """Tabulate numbers, metric by title, of all variants that have them, in Markdown."""
        return markdown(
            [first, *columns],
            [
                [name, *(f"{self.estimate(name, metric, at):4}" for metric in columns.values())]
                for name in self.names
                if all((name, metric, at) in self._values for metric in columns.values())
            ],
        )

    def intervals(self, columns: Mapping[str, str]) -> dict[str, dict[str, tuple[float, float]]]:
        """The same for `plots.intervals`."""
        return {
            title: {name: self.estimate(name, metric).pair for name in self.names} for title, metric in columns.items()
        }

    def leaders(self, metric: str, what: str, *, lowest: bool) -> list[Claim]:
        """Say which variant has the best mean, which next one is worse, and which can't be told from it."""
        sign = 1 if lowest else -1
        best, *others = sorted(self.names, key=lambda name: sign * self.estimate(name, metric).mean)
        behind = {name: self.difference(name, best, metric) for name in others}
        worse = [name for name in others if not behind[name].is_open]
        ties = [f"{name} ({behind[name]})" for name in others if behind[name].is_open]
        order, word = ("lowest", "lower") if lowest else ("highest", "higher")
        told = f"; the next that can be told from it is {worse[0]} ({behind[worse[0]]})" if worse else ""
        claims = [Claim(f"On average, {what} is {order} with {best} ({self.estimate(best, metric)}){told}.")]
        if ties:
            claims.append(Claim(f"whether {what} is {word} with {best} than with {', '.join(ties)}", is_open=True))
        return claims
