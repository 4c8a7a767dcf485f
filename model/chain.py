"""Chains of linear layers, ReLU and dropout as arrays: what moments and novelty need beside the graph."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from threadpoolctl import ThreadpoolController

from model.mlp import MLPConfig

Array = np.ndarray

_BLAS = ThreadpoolController().select(user_api="blas").lib_controllers


class Affine(Protocol):
    """A linear layer."""

    def arrays(self) -> tuple[Array, Array]:
        """Return the weight (V, U) and the bias (V,)."""


@dataclass(frozen=True)
class FixedAffine:
    """A linear layer whose parameters do not change.

    Attributes:
        weight_VU: the weight.
        bias_V: the bias.
    """

    weight_VU: Array
    bias_V: Array

    def arrays(self) -> tuple[Array, Array]:
        """Return the weight (V, U) and the bias (V,)."""
        return self.weight_VU, self.bias_V


class Stage(NamedTuple):
    """An optional ReLU, any number of dropout layers, then a linear layer.

    Attributes:
        relu: whether there is a ReLU; its order relative to dropout does not matter.
        dropouts: of each active dropout layer, the position among all active ones of the network, and the probability.
        linear: the layer's parameters.
    """

    relu: bool
    dropouts: tuple[tuple[int, float], ...]
    linear: Affine

    @property
    def p(self) -> float:
        """Probability that at least one of the dropout layers drops a unit."""
        return 1 - math.prod(1 - p for _, p in self.dropouts)


class Stages(Protocol):
    """A chain of layers on vectors of units that ends in a linear layer."""

    def stages(self) -> tuple[Sequence[Stage], Sequence[Stage]]:
        """Return the stages before the first active dropout, and the stages from there on."""


@dataclass(frozen=True)
class Chain:
    """A chain whose parameters do not change.

    Attributes:
        before: stages before the first active dropout.
        after: the other stages.
    """

    before: tuple[Stage, ...]
    after: tuple[Stage, ...]

    def stages(self) -> tuple[Sequence[Stage], Sequence[Stage]]:
        """Return the stages before the first active dropout, and the stages from there on."""
        return self.before, self.after

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> Self:
        """Divide stages at the first active dropout.

        Raises:
            ValueError: no dropout is active.
        """
        first = next((index for index, stage in enumerate(stages) if stage.dropouts), None)
        if first is None:
            raise ValueError("the network has no active dropout: it needs an nn.Dropout with p > 0")
        return cls(tuple(stages[:first]), tuple(stages[first:]))

    def to_json(self) -> dict[str, Any]:
        """Return what `arrays` does not have, for the card."""
        stages = (*self.before, *self.after)
        weights = [stage.linear.arrays()[0] for stage in stages]
        return {
            "units": [weights[0].shape[1], *(len(weight_VU) for weight_VU in weights)],
            "stages": [{"relu": stage.relu, "dropout": [site for site, _ in stage.dropouts]} for stage in stages],
        }

    def arrays(self) -> dict[str, Array]:
        """Return weights and biases by name, as `tensor_types` describes them."""
        arrays = {}
        for number, stage in enumerate((*self.before, *self.after)):
            arrays[f"{number}.weight"], arrays[f"{number}.bias"] = map(np.ascontiguousarray, stage.linear.arrays())
        return arrays

    @classmethod
    def tensor_types(cls, fields: Mapping[str, Any]) -> dict[str, str]:
        """Types of the arrays of a chain with these results of `to_json`.

        Raises:
            ValueError: a field is missing or invalid.
        """
        units = fields.get("units")
        if not isinstance(units, list) or not all(type(size) is int and size > 0 for size in units) or len(units) < 2:
            raise ValueError(f"units: expected the sizes of the layers, got {units!r}")
        types: dict[str, str] = {}
        for number, (inputs, outputs) in enumerate(itertools.pairwise(units)):
            types |= {f"{number}.weight": f"float32[{outputs}, {inputs}]", f"{number}.bias": f"float32[{outputs}]"}
        return types

    @classmethod
    def from_parts(cls, fields: Mapping[str, Any], arrays: Mapping[str, Array], rates: Sequence[float]) -> Self:
        """Join the results of `to_json` and `arrays`.

        Args:
            fields: result of `to_json`.
            arrays: result of `arrays`, with the types that `tensor_types` gives.
            rates: probability of each use of dropout, in the order of execution.

        Raises:
            ValueError: the stages are not described, not one for each layer, or do not use each dropout once and in
                order; or an array is not finite.
        """
        try:
            described = [(entry["relu"], entry["dropout"]) for entry in fields["stages"]]
            sites = [site for _, dropouts in described for site in dropouts]
        except (KeyError, TypeError) as error:
            raise ValueError("stages: expected a list of entries with relu and dropout") from error
        if not all(isinstance(relu, bool) for relu, _ in described) or 2 * len(described) != len(arrays):
            raise ValueError(f"stages: expected true or false as relu of {len(arrays) // 2} layers")
        if sites != list(range(len(rates))):
            raise ValueError(f"stages: expected each of {len(rates)} uses of dropout, in order, got {sites}")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} has values that are not finite")
        return cls.of(
            [
                Stage(
                    relu,
                    tuple((site, rates[site]) for site in dropouts),
                    FixedAffine(arrays[f"{number}.weight"], arrays[f"{number}.bias"]),
                )
                for number, (relu, dropouts) in enumerate(described)
            ]
        )

    @classmethod
    def of_mlp(cls, config: MLPConfig, arrays: Mapping[str, Array]) -> Self:
        """Read the arrays of `build_mlp(config).state_dict()`.

        Raises:
            ValueError: no dropout is active.
        """
        names = [*(f"hidden{number}" for number in range(1, len(config.hidden) + 1)), "logits"]
        stages, active = [], 0
        for number, (name, p) in enumerate(zip(names, (0.0, *config.dropout), strict=True)):
            dropouts = ((active, p),) if p > 0 else ()
            active += len(dropouts)
            stages.append(Stage(number > 0, dropouts, FixedAffine(arrays[f"{name}.weight"], arrays[f"{name}.bias"])))
        return cls.of(stages)


def as_vectors(images_B: Array) -> Array:
    """Flatten images (B, ...) to vectors of units (B, U)."""
    return images_B.reshape(len(images_B), math.prod(images_B.shape[1:]))


def run(stages: Sequence[Stage], units_U: Array) -> Array:
    """Run units through stages without dropout.

    Raises:
        ValueError: the number of units does not match a layer.
    """
    for stage in stages:
        weight_VU, bias_V = stage.linear.arrays()
        check_units(units_U, weight_VU)
        units_U = weight_VU @ (np.maximum(units_U, 0) if stage.relu else units_U)
        units_U += bias_V
    return units_U


def check_units(units_U: Array, weight_VU: Array) -> None:
    """Raise a ValueError if the number of units does not match the layer."""
    if weight_VU.shape[1] != units_U.size:
        raise ValueError(f"{units_U.size} units don't match a linear layer of {weight_VU.shape[1]}")


class one_thread:  # noqa: N801 - called like a function
    """Context in which BLAS uses one thread: for small matrix products, several threads cost more than they save.

    The number of threads is global to the process; with concurrent uses it may be restored too early, which affects
    speed only.
    """

    def __enter__(self) -> None:
        self._before = [(pool, threads) for pool in _BLAS if (threads := pool.get_num_threads()) > 1]
        for pool, _ in self._before:
            pool.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        for pool, threads in self._before:
            pool.set_num_threads(threads)
