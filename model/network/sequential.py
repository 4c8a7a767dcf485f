"""Monte Carlo dropout of layers in sequence: one pass in which the masks take the place of the images."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from model.chain import one_thread
from model.kinds import ArrayOrTensor
from model.masks import MaskRange, Masks, mask_chunks
from model.network.chain import LiveChain, is_chain_layer
from model.network.dropout import draw_factors
from model.network.dropout_mode import refuse_unmaskable, softmax
from model.network.layers import (
    Structure,
    as_images,
    has_hooks,
    is_active,
    is_dropout,
    layers_of,
    split_at_first_dropout,
)

_CACHED_CHUNKS = 64  # of masks, one for each dropout layer and chunk of samples

# Numbers of axes, batch included, for which channel dropout drops channels; with one axis fewer, torch interprets the
# batch axis as channels.
_CHANNEL_DROPOUT = {nn.Dropout1d: (3,), nn.Dropout2d: (3, 4), nn.Dropout3d: (5,)}
_PROBABILITIES = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.Sigmoid)
_CHAIN_DTYPES = (torch.float32, torch.float64)
# Modules of torch.nn whose output in train mode is random or depends on the whole batch.
_MODE_SENSITIVE = (
    _NormBase,
    nn.RReLU,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    _SpectralNorm,
)


class NotSequentialError(TypeError):
    """A network that is more than a sequence of layers."""


class SequentialDropout:
    """Predictions of a sequence of layers with and without masks; see `model.network.monte_carlo.MonteCarloDropout`.

    Args:
        network: layers in sequence (nested `nn.Sequential` too) from images (B, ...) to logits (B, C), with at least
            one `nn.Dropout` or `nn.Dropout1d/2d/3d` of p > 0.

    Raises:
        NotSequentialError: the network is not a sequence of layers, or has dropout inside a layer.
        TypeError: the network contains dropout that masks can't replace, or ends in probabilities instead of logits.
        ValueError: no dropout is active.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self._network = network
        self._read()

    def _read(self) -> None:
        """Read the current layers of the network."""
        network = self._network
        refuse_unmaskable(network)
        try:
            layers = layers_of(network, "MonteCarloDropout")
        except TypeError as error:
            raise NotSequentialError(str(error)) from error
        if any(_has_inner_dropout(layer) for _, layer in layers):
            raise NotSequentialError("a layer has dropout inside")
        self._structure = Structure(network)
        self._layers = [layer for _, layer in layers]
        split_at_first_dropout(self._layers)
        last_name, last = layers[-1]
        if isinstance(last, _PROBABILITIES):
            raise TypeError(f"the network must end in logits, but its last layer {last_name} is {type(last).__name__}")
        self._depends_on_mode = [
            (name, module) for name, layer in layers for module in layer.modules() if _depends_on_mode(module)
        ]
        all_of_torch = all(_is_torch_module(module) for layer in self._layers for module in layer.modules())
        # inference_mode is faster, but tensors that a custom module keeps could not be used with gradients later.
        self._without_gradients = torch.inference_mode if all_of_torch else torch.no_grad
        self._may_modify_input = not all_of_torch or any(
            _may_modify_input(module) for layer in self._layers for module in layer.modules()
        )
        start = _chain_start(self._layers)
        self._before_chain, chain_layers = self._layers[:start], self._layers[start:]
        self._flattens = isinstance(chain_layers[0], nn.Flatten) if chain_layers else False
        self._chain = LiveChain(chain_layers)
        self._multipliers = lru_cache(maxsize=_CACHED_CHUNKS)(draw_factors)

    def predict(self, images_B: ArrayOrTensor) -> Tensor:
        """Predict without dropout: `probs_BC`."""
        images_B = self._prepare(images_B)
        with torch.no_grad():
            return _concatenate([softmax(_run(self._layers, image)) for image in self._split_images(images_B)], dim=0)

    def sample(self, images_B: ArrayOrTensor, *, samples: int, seed: int, masks: Masks) -> Tensor:
        """Predict under masks: `probs_SBC`. At most 100 masks of one image are computed at a time."""
        images_B = self._prepare(images_B)
        if len(images_B) == 0:
            return self.predict(images_B).expand(samples, -1, -1)
        if self._can_use_chain(images_B):
            vectors_B = self._vectors(images_B)
            with one_thread(), np.errstate(all="ignore"):
                logits_BCS = self._chain.sample(vectors_B, samples=samples, seed=seed, masks=masks)
            return torch.from_numpy(logits_BCS).softmax(dim=1).permute(2, 0, 1)
        before, after = split_at_first_dropout(self._layers)
        with self._without_gradients():
            features_B = [_run(before, image) for image in self._split_images(images_B)]
            logits = [
                torch.stack([self._run_masked(after, features, (chunk, seed, masks)) for features in features_B], dim=1)
                for chunk in mask_chunks(samples, features_B[0].numel())
            ]
        return softmax(_concatenate(logits, dim=0))

    def _split_images(self, images_B: Tensor) -> Iterable[Tensor]:
        """Split into batches of one image; copies, if a layer may modify its input."""
        images = [images_B] if len(images_B) == 1 else torch.split(images_B, 1)
        return [image.clone() for image in images] if self._may_modify_input else images

    def _can_use_chain(self, images_B: Tensor) -> bool:
        """Whether NumPy can compute all layers from the first active dropout on."""
        return (
            images_B.is_cpu
            and images_B.dtype in _CHAIN_DTYPES
            and (images_B.ndim == 2 or self._flattens)
            and self._chain.is_unchanged()
            and not any(map(is_active, self._before_chain))
        )

    def _vectors(self, images_B: Tensor) -> Sequence[np.ndarray]:
        """Run images through the layers before the chain: one vector for each."""
        if not self._before_chain:
            return list(images_B.numpy(force=True).reshape(len(images_B), -1))
        with self._without_gradients():
            return [
                _run(self._before_chain, image).flatten().numpy(force=True) for image in self._split_images(images_B)
            ]

    def _run_masked(self, layers: list[nn.Module], features: Tensor, mask_range: MaskRange) -> Tensor:
        """Run one image's features (1, ...) through the layers from the first active dropout on: logits (S, C)."""
        dropouts = 0
        for layer in layers:
            if is_active(layer):
                shape = _mask_shape(layer, features)
                features = features * self._multipliers(
                    shape, layer.p, dropouts, mask_range, features.dtype, features.device
                )
                dropouts += 1
            elif not is_dropout(layer):
                features = layer(features)
        return features

    def _prepare(self, images_B: Tensor | np.ndarray) -> Tensor:
        if not self._structure.is_current():
            self._read()
        for name, module in self._depends_on_mode:
            if module.training or _needs_batch_statistics(module):
                raise ValueError(
                    f"layer {name}: {type(module).__name__} is random or depends on the batch in this mode; "
                    "call network.eval() first (a batch norm also needs running statistics)"
                )
        return as_images(images_B, self._structure.parameter)


def _has_inner_dropout(layer: nn.Module) -> bool:
    """Whether a layer that is not dropout itself uses dropout."""
    return not is_dropout(layer) and any(
        (isinstance(module, _DropoutNd) and module.p > 0)
        or (isinstance(module, nn.MultiheadAttention) and module.dropout > 0)
        for module in layer.modules()
    )


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether train mode may change what a module computes: known for torch.nn, assumed for all other modules."""
    if is_dropout(module):
        return False
    estimates = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())  # noqa: SLF001
    return estimates or isinstance(module, _MODE_SENSITIVE) or not _is_torch_module(module)


def _is_torch_module(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _may_modify_input(module: nn.Module) -> bool:
    """Whether a module may modify its input: known for torch.nn, assumed for all other modules."""
    return getattr(module, "inplace", False) or not _is_torch_module(module)


def _needs_batch_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _run(layers: Iterable[nn.Module], image: Tensor) -> Tensor:
    """Run one image through the layers without dropout."""
    for layer in layers:
        if not is_dropout(layer):
            image = layer(image) if has_hooks(layer) else layer.forward(image)
    return image


def _concatenate(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _chain_start(layers: list[nn.Module]) -> int:
    """Index of the layer at which a chain starts: the first `nn.Flatten` followed by chain layers only, or 0."""
    chain_layers = [is_chain_layer(layer) for layer in layers]
    if isinstance(layers[-1], nn.Linear):
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.Flatten) and all(chain_layers[index:]):
                return index
        if all(chain_layers):
            return 0
    return len(layers)


def _mask_shape(layer: _DropoutNd, features: Tensor) -> tuple[int, ...]:
    shape = tuple(features.shape[1:])
    for kind, axes in _CHANNEL_DROPOUT.items():
        if isinstance(layer, kind):
            if features.ndim not in axes:
                raise ValueError(
                    f"{kind.__name__} masks features of {' or '.join(map(str, axes))} axes, the batch included; "
                    f"got {features.ndim}"
                )
            return (shape[0], *(1 for _ in shape[1:]))
    return shape
