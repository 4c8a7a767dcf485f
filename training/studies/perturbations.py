"""Noise on hidden units and weights; its variance depends on the rate only, not on the kind."""

from collections.abc import Callable
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.masks import survivor_scale

Kind = Literal["dropout", "gaussian", "uniform", "additive", "balanced", "dropconnect"]

_EVERYWHERE = torch.ones(1, 1)


class Streams:
    """Random numbers with a separate generator for each layer and distribution.

    So the numbers of one network do not depend on the needs of the networks trained with it.
    """

    def __init__(self, *key: int) -> None:
        self._key = key
        self._generators: dict[tuple[int, int], torch.Generator] = {}

    def generator(self, layer: int, distribution: int) -> torch.Generator:
        """Return the generator of a layer and distribution in its current state."""
        place = layer, distribution
        if place not in self._generators:
            state = np.random.SeedSequence([*self._key, *place]).generate_state(1, np.uint64)
            self._generators[place] = torch.Generator().manual_seed(int(state[0]))
        return self._generators[place]


class Draws:
    """Random numbers of one layer and step, drawn at first use and shared by all networks.

    Args:
        shape: of the numbers, (B, U), or (1, U) for one mask over all images.
        streams: their generators.
        layer: index of the layer.
    """

    def __init__(self, shape: tuple[int, int], streams: Streams, layer: int) -> None:
        self._shape = shape
        self._streams = streams
        self._layer = layer

    @cached_property
    def uniform(self) -> Tensor:
        """Uniform on [0, 1)."""
        return torch.rand(self._shape, generator=self._streams.generator(self._layer, 0))

    @cached_property
    def normal(self) -> Tensor:
        """Standard normal."""
        return torch.randn(self._shape, generator=self._streams.generator(self._layer, 1))

    @cached_property
    def levels(self) -> Tensor:
        """The levels 0, 1/B, 2/B, ... of B images in each column, each image's level uniformly distributed.

        Each column is the same permutation of the images, rotated by a random distance, so that the levels of one
        image are independent.
        """
        generator = self._streams.generator(self._layer, 2)
        rows, columns = self._shape
        order_B1 = torch.randperm(rows, generator=generator)[:, None]
        distance_U = torch.randint(rows, (columns,), generator=generator)
        return ((order_B1 + distance_U) % rows) / rows


def relative_variance(rate: float) -> float:
    """Variance p / (1 - p) of dropout's factor, which all noises of a rate have."""
    return rate / (1 - rate)


def perturb(kind: Kind, rate: float, draws: Draws, mean_square: Tensor) -> tuple[Tensor, Tensor | None]:
    """Draw a noise on units h: a factor and a shift, h -> factor * h + shift, that preserve the expectation.

    With a = p / (1 - p), the multiplicative ones give a unit the variance a h^2 (Srivastava et al. 2014, section 10,
    has the Gaussian one); the additive one gives all units its mean.

    - "dropout": factor 0 with probability p, else 1 / (1 - p).
    - "balanced": the same, but each unit is dropped in the same number of images of a batch.
    - "gaussian": factor 1 + sqrt(a) z, z standard normal.
    - "uniform": factor 1 + sqrt(3 a) (2 u - 1), u uniform on [0, 1).
    - "additive": shift sqrt(a m) z, m the mean square of the units.

    Args:
        kind: kind of noise; "dropconnect" has no noise on units.
        rate: p, above 0 and below 1.
        draws: of the units' shape, or of one row.
        mean_square: of the units, over images and units.
    """
    return _PERTURBATIONS[kind](rate, draws, mean_square)


def mask_weights(rate: float, draws: Draws) -> Tensor:
    """Draw DropConnect's factors for a layer's weights: 0 with probability p, else 1 / (1 - p)."""
    return (draws.uniform >= rate) * survivor_scale(rate)


def _dropout(rate: float, draws: Draws, _: Tensor) -> tuple[Tensor, None]:
    return (draws.uniform >= rate) * survivor_scale(rate), None


def _balanced(rate: float, draws: Draws, mean_square: Tensor) -> tuple[Tensor, None]:
    levels = draws.levels
    if len(levels) == 1:  # a single mask can't be balanced
        return _dropout(rate, draws, mean_square)
    kept = levels >= rate
    return kept / kept.float().mean(dim=0), None


def _gaussian(rate: float, draws: Draws, _: Tensor) -> tuple[Tensor, None]:
    return 1 + relative_variance(rate) ** 0.5 * draws.normal, None


def _uniform(rate: float, draws: Draws, _: Tensor) -> tuple[Tensor, None]:
    return 1 + (3 * relative_variance(rate)) ** 0.5 * (2 * draws.uniform - 1), None


def _additive(rate: float, draws: Draws, mean_square: Tensor) -> tuple[Tensor, Tensor]:
    return _EVERYWHERE, (relative_variance(rate) * mean_square).sqrt() * draws.normal


_PERTURBATIONS: dict[Kind, Callable[[float, Draws, Tensor], tuple[Tensor, Tensor | None]]] = {
    "dropout": _dropout,
    "balanced": _balanced,
    "gaussian": _gaussian,
    "uniform": _uniform,
    "additive": _additive,
}
