"""Chains of live linear layers, ReLU and dropout, computed with NumPy.

In small networks the overhead of a call exceeds its arithmetic, and a NumPy call has a third of torch's overhead.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from model.chain import Stage, check_units, run
from model.masks import MaskRange, Masks, keep_masks, mask_chunks, survivor_scale
from model.network.layers import has_hooks, split_at_first_dropout

Array = np.ndarray

_CHAIN_LAYERS = {nn.Linear, nn.ReLU, nn.Dropout, nn.Flatten}
_CACHED_CHUNKS = 64  # of masks, one for each dropout layer and chunk of samples
_CHUNKS_PER_GROUP = 16  # computed for one image before the next image, so that the cached masks are reused


def is_chain_layer(layer: nn.Module) -> bool:
    """Whether a chain can contain the layer: its type is supported, and it has no hooks."""
    if type(layer) is nn.Flatten and not (layer.start_dim == 1 and layer.end_dim == -1):
        return False
    return type(layer) in _CHAIN_LAYERS and not has_hooks(layer)


class LiveAffine:
    """Weight (V, U) and bias (V,) of a linear layer as arrays that share the memory of CPU parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        # Accessing `linear.weight` would search three dictionaries.
        self._parameters: dict[str, Any] = linear._parameters  # noqa: SLF001
        self._key: object = None

    def arrays(self) -> tuple[Array, Array]:
        """Return the current parameters."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        key = (weight.data_ptr(), weight.shape, weight.stride(), None if bias is None else bias.data_ptr())
        if weight.dtype is torch.bfloat16:  # not a NumPy dtype
            self._key = None
            weight_VU = weight.float().numpy(force=True)
            return weight_VU, np.zeros_like(weight_VU[:, 0]) if bias is None else bias.float().numpy(force=True)
        if key != self._key or not weight.is_cpu:  # an equal address is the same memory, which the arrays keep alive
            self._weight_VU: Array = weight.numpy(force=True)
            self._bias_V = np.zeros_like(self._weight_VU[:, 0]) if bias is None else bias.numpy(force=True)
            self._key = key
        return self._weight_VU, self._bias_V


class LiveChain:
    """A chain of layers on vectors of units that ends in a linear layer.

    Args:
        layers: `is_chain_layer` must hold for each; `is_unchanged` checks it again before use.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._layers = list(layers)
        self._affine = {layer: LiveAffine(layer) for layer in self._layers if isinstance(layer, nn.Linear)}
        self._dropouts = [layer for layer in self._layers if isinstance(layer, nn.Dropout)]
        self._scaled_masks = lru_cache(maxsize=_CACHED_CHUNKS)(_draw_scaled_masks)
        self._rates: list[float] | None = None

    def is_unchanged(self) -> bool:
        """Whether the layers still have supported types and no hooks."""
        for layer in self._layers:
            if layer._forward_hooks or layer._forward_pre_hooks or type(layer) not in _CHAIN_LAYERS:  # noqa: SLF001
                return False
        return True

    def stages(self) -> tuple[list[Stage], list[Stage]]:
        """Read the layers as two lists: stages before the first active dropout, and stages from there on.

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
        """Run the units of each image through all layers under each mask.

        Returns:
            The last layer's units, (B, V, S).

        Raises:
            ValueError: the number of units does not match a layer, or no dropout is active.
        """
        before, after = self.stages()
        prefix_BU = [run(before, units_U) for units_U in units_BU]
        mask_ranges = [(chunk, seed, masks) for chunk in mask_chunks(samples, prefix_BU[0].size)]
        parts_BVS = []
        for first in range(0, len(mask_ranges), _CHUNKS_PER_GROUP):
            group = mask_ranges[first : first + _CHUNKS_PER_GROUP]
            images_VS = [self._sample_one(after, units_U, group) for units_U in prefix_BU]
            parts_BVS.append(images_VS[0][None] if len(images_VS) == 1 else np.stack(images_VS))
        return _concatenate(parts_BVS)

    def _sample_one(self, stages: Sequence[Stage], units_U: Array, mask_ranges: Sequence[MaskRange]) -> Array:
        """Run one image's units through stages of which the first has dropout; each column of the result is a mask.

        Units that are 0 (most of them after a ReLU) stay 0 under every mask, so the first masks and weights are
        restricted to the other units. This saves time and changes no result.
        """
        (relu, dropouts, linear), *others = stages
        weight_VU, bias_V = linear.arrays()
        check_units(units_U, weight_VU)
        if relu:
            units_U = np.maximum(units_U, 0)
        active = units_U.nonzero()[0]
        active_U1 = units_U.take(active, mode="clip")[:, None]  # this mode skips NumPy's check of the indices
        active_weight_VU, bias_V1 = weight_VU.take(active, axis=1, mode="clip"), bias_V[:, None]
        dtype, parts_VS = units_U.dtype, []
        for mask_range in mask_ranges:
            units_US = active_U1
            for position, p in dropouts:
                masks_US = self._scaled_masks(units_U.size, p, position, mask_range, dtype)
                units_US = masks_US.take(active, axis=0, mode="clip") * units_US
            units_US = active_weight_VU @ units_US
            units_US += bias_V1
            for stage in others:
                if stage.relu:
                    torch.from_numpy(units_US).relu_()  # np.maximum with a scalar takes four times as long
                for position, p in stage.dropouts:
                    units_US *= self._scaled_masks(len(units_US), p, position, mask_range, dtype)
                weight_VU, bias_V = stage.linear.arrays()
                units_US = weight_VU @ units_US
                units_US += bias_V[:, None]
            parts_VS.append(units_US)
        return _concatenate(parts_VS)


def _concatenate(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _draw_scaled_masks(
    units: int, p: float, position: int, mask_range: MaskRange, dtype: np.dtype[np.floating]
) -> Array:
    """Masks of shape (U, S): 0 for a dropped unit, 1 / (1 - p) for a kept unit."""
    samples, seed, masks = mask_range
    keep_SU = keep_masks((units,), p, samples=len(samples), first=samples.start, seed=seed, layer=position, masks=masks)
    masks_US: Array = np.multiply(keep_SU.T, survivor_scale(p), order="C", dtype=dtype)
    return masks_US
