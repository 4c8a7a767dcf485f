"""Chains of linear layers, ReLU and dropout, computed by NumPy.

They are for networks so small that a call costs more than its work: one of NumPy's costs a third of torch's.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import nn

from model.dropout import Draw, Masks, keep_masks, mask_chunks, survivor_scale
from model.layers import has_hooks, split_at_first_dropout

Array = np.ndarray

_BLAS = ThreadpoolController().select(user_api="blas").lib_controllers
_LINKS = {nn.Linear, nn.ReLU, nn.Dropout, nn.Flatten}
_CACHED_CHUNKS = 64  # of masks, for each dropout layer and chunk of samples
_CHUNKS_IN_A_ROW = 16  # of one example: those of a few dropout layers are still there when the next one needs them


def is_link(layer: nn.Module) -> bool:
    """Whether the layer is of a kind that chains are made of, and calling it does nothing besides."""
    if type(layer) is nn.Flatten and not (layer.start_dim == 1 and layer.end_dim == -1):
        return False
    return type(layer) in _LINKS and not has_hooks(layer)


class Stage(NamedTuple):
    """ReLU or not, then dropouts, then a linear layer.

    Attributes:
        relu: whether there is one. Behind dropout it is the same as before.
        dropouts: position among the network's active ones, and probability, of each active one.
        linear: the layer's parameters.
    """

    relu: bool
    dropouts: tuple[tuple[int, float], ...]
    linear: "Affine"

    @property
    def p(self) -> float:
        """Probability that one of the dropouts drops a unit."""
        return 1 - math.prod(1 - p for _, p in self.dropouts)


class Affine:
    """Weight (V, U) and bias (V,) of a linear layer as arrays that share the parameters' memory, if it is the CPU's."""

    def __init__(self, linear: nn.Linear) -> None:
        # `linear.weight` would ask three dictionaries.
        self._parameters: dict[str, Any] = linear._parameters  # noqa: SLF001
        self._key: object = None

    def arrays(self) -> tuple[Array, Array]:
        """Look at the parameters as they are now."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        key = (weight.data_ptr(), weight.shape, weight.stride(), None if bias is None else bias.data_ptr())
        if weight.dtype is torch.bfloat16:  # which NumPy hasn't
            self._key = None
            weight_VU = weight.float().numpy(force=True)
            return weight_VU, np.zeros_like(weight_VU[:, 0]) if bias is None else bias.float().numpy(force=True)
        if key != self._key or not weight.is_cpu:  # the same address is the same memory, as the arrays still hold it
            self._weight_VU: Array = weight.numpy(force=True)
            self._bias_V = np.zeros_like(self._weight_VU[:, 0]) if bias is None else bias.numpy(force=True)
            self._key = key
        return self._weight_VU, self._bias_V


class Chain:
    """A chain that ends in a linear layer, on vectors of units.

    Args:
        layers: each `is_link`, now and, which `is_intact` tells, whenever the chain is used.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._layers = list(layers)
        self._affine = {layer: Affine(layer) for layer in self._layers if isinstance(layer, nn.Linear)}
        self._dropouts = [layer for layer in self._layers if isinstance(layer, nn.Dropout)]
        self._columns = lru_cache(maxsize=_CACHED_CHUNKS)(_draw_columns)
        self._rates: list[float] | None = None

    def is_intact(self) -> bool:
        """Whether the layers are still links: of the same kinds, and without hooks."""
        for layer in self._layers:
            if layer._forward_hooks or layer._forward_pre_hooks or type(layer) not in _LINKS:  # noqa: SLF001
                return False
        return True

    def stages(self) -> tuple[list[Stage], list[Stage]]:
        """Read the layers: stages before the first active dropout, and from it on.

        Raises:
            ValueError: no active dropout.
        """
        rates = [layer.p for layer in self._dropouts]
        if rates != self._rates:
            split_at_first_dropout(self._layers)
            stages = self._read()
            first = next(index for index, stage in enumerate(stages) if stage.dropouts)
            self._stages = stages[:first], stages[first:]
            self._rates = rates
        return self._stages

    def _read(self) -> list[Stage]:
        stages: list[Stage] = []
        relu, dropouts, active = False, [], 0
        for layer in self._layers:
            if isinstance(layer, nn.ReLU):
                relu = True
            elif isinstance(layer, nn.Dropout) and layer.p > 0:
                dropouts.append((active, layer.p))
                active += 1
            elif isinstance(layer, nn.Linear):
                stages.append(Stage(relu, tuple(dropouts), self._affine[layer]))
                relu, dropouts = False, []
        return stages

    def sample(self, units_BU: Sequence[Array], *, samples: int, seed: int, masks: Masks) -> Array:
        """Run the units of each example through all layers, under each mask.

        Returns:
            The last units (B, V, S).

        Raises:
            ValueError: the units don't fit a layer, or there is no active dropout.
        """
        before, after = self.stages()
        known_BU = [run(before, units_U) for units_U in units_BU]
        draws = [(chunk, seed, masks) for chunk in mask_chunks(samples, known_BU[0].size)]
        parts_BVS = []
        for first in range(0, len(draws), _CHUNKS_IN_A_ROW):
            row = draws[first : first + _CHUNKS_IN_A_ROW]
            ones_VS = [self._sample_one(after, units_U, row) for units_U in known_BU]
            parts_BVS.append(ones_VS[0][None] if len(ones_VS) == 1 else np.stack(ones_VS))
        return _join(parts_BVS)

    def _sample_one(self, stages: Sequence[Stage], units_U: Array, draws: Sequence[Draw]) -> Array:
        """Run one example's units through stages of which the first has dropout: a column for each mask.

        Units that are 0 stay 0 under every mask (after a ReLU most are), so the first masks and the weights behind them
        are narrowed to the others. That changes nothing but the time, as the layout does.
        """
        (relu, dropouts, linear), *others = stages
        weight_VU, bias_V = linear.arrays()
        check_units(units_U, weight_VU)
        if relu:
            units_U = np.maximum(units_U, 0)
        active = units_U.nonzero()[0]
        active_U1 = units_U.take(active, mode="clip")[:, None]  # with this mode, NumPy doesn't look at indices first
        narrow_VU, bias_V1 = weight_VU.take(active, axis=1, mode="clip"), bias_V[:, None]
        dtype, parts_VS = units_U.dtype, []
        for draw in draws:
            units_US = active_U1
            for position, p in dropouts:
                columns_US = self._columns(units_U.size, p, position, draw, dtype)
                units_US = columns_US.take(active, axis=0, mode="clip") * units_US
            units_US = narrow_VU @ units_US
            units_US += bias_V1
            for stage in others:
                if stage.relu:
                    torch.from_numpy(units_US).relu_()  # NumPy's maximum with a number takes four times as long
                for position, p in stage.dropouts:
                    units_US *= self._columns(len(units_US), p, position, draw, dtype)
                weight_VU, bias_V = stage.linear.arrays()
                units_US = weight_VU @ units_US
                units_US += bias_V[:, None]
            parts_VS.append(units_US)
        return _join(parts_VS)


def run(stages: Sequence[Stage], units_U: Array) -> Array:
    """Run units through stages with every unit kept.

    Raises:
        ValueError: they don't fit a layer.
    """
    for stage in stages:
        weight_VU, bias_V = stage.linear.arrays()
        check_units(units_U, weight_VU)
        units_U = weight_VU @ (np.maximum(units_U, 0) if stage.relu else units_U)
        units_U += bias_V
    return units_U


def check_units(units_U: Array, weight_VU: Array) -> None:
    """Refuse units that don't fit a layer, with a ValueError."""
    if weight_VU.shape[1] != units_U.size:
        raise ValueError(f"{units_U.size} units don't fit a linear layer of {weight_VU.shape[1]}")


def _join(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _draw_columns(units: int, p: float, position: int, draw: Draw, dtype: np.dtype[np.floating]) -> Array:
    """0 for a dropped unit and 1 / (1 - p) for a kept one, (U, S)."""
    samples, seed, masks = draw
    keep_SU = keep_masks((units,), p, samples=len(samples), first=samples.start, seed=seed, layer=position, masks=masks)
    columns_US: Array = np.multiply(keep_SU.T, survivor_scale(p), order="C", dtype=dtype)
    return columns_US


class one_thread:  # noqa: N801 - called like a function
    """Context in which NumPy's products take one thread: they are small, so that sharing them costs more than it saves.

    The number of threads belongs to the process, so that of several users at once some may find it put back too early.
    """

    def __enter__(self) -> None:
        self._before = [(pool, threads) for pool in _BLAS if (threads := pool.get_num_threads()) > 1]
        for pool, _ in self._before:
            pool.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        for pool, threads in self._before:
            pool.set_num_threads(threads)
