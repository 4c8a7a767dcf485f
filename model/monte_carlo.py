"""Monte-Carlo dropout: many masks for the price of little more than one pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from model.dropout import check_seed, keep_masks, survivor_scale

_CHUNK = 128  # masks that pass at once: bounds the memory
_CACHED_DRAWS = 32  # chunks of masks kept for the next call, one chunk for each layer and 128 samples

# Axes of the features, batch included, at which channel dropout drops channels: with one axis fewer, torch takes the
# first for channels and the batch for one example.
_CHANNEL_DROPOUT = {nn.Dropout1d: (3,), nn.Dropout2d: (3, 4), nn.Dropout3d: (5,)}
_DROPOUT_FORWARDS = {kind.forward for kind in (nn.Dropout, *_CHANNEL_DROPOUT)}
_PROBABILITIES = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.Sigmoid)
# What torch.nn computes at random, or from the whole batch, in train mode.
_MODE_SENSITIVE = (
    _NormBase,
    nn.RReLU,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


class MonteCarloDropout:
    """Eval-mode prediction and Monte-Carlo dropout of one network (Gal & Ghahramani 2016, arXiv:1506.02142).

    A mask is one thinned sub-network, keyed by (seed, sample, layer, unit) and shared by all images. Layers before the
    first active dropout run once for each image. The network's train/eval mode never matters to its dropout layers and
    is never changed, and no global random state is touched. Each image is computed by itself, so that its bits don't
    depend on its neighbours.

    Args:
        network: layers in sequence (nested `nn.Sequential` too) from images (B, ...) to logits (B, C), with at least
            one `nn.Dropout` or `nn.Dropout1d/2d/3d` of p > 0.

    Raises:
        TypeError: not an `nn.Sequential`, dropout of a kind or in a place that can't be reached from here, or
            probabilities instead of logits at the end.
        ValueError: no active dropout.
    """

    def __init__(self, network: nn.Sequential) -> None:
        if not _is_sequence(network):
            raise TypeError(
                f"MonteCarloDropout needs an nn.Sequential, got {type(network).__name__} "
                "(hooks and a forward of its own would be passed over)"
            )
        layers = list(_flatten(network))
        for name, layer in layers:
            _refuse_unreachable_dropout(name, layer)
        self._layers = [layer for _, layer in layers]
        self._split_at_first_dropout()
        last_name, last = layers[-1]
        if isinstance(last, _PROBABILITIES):
            raise TypeError(f"the network must end in logits, but its last layer {last_name} is {type(last).__name__}")
        self._may_vary = [(name, module) for name, layer in layers for module in layer.modules() if _may_vary(module)]
        self._parameter = next(network.parameters(), None)
        self._multipliers = lru_cache(maxsize=_CACHED_DRAWS)(_draw_multipliers)

    def predict(self, images_B: Tensor | np.ndarray) -> Tensor:
        """Predict with every unit kept, as in eval mode.

        Args:
            images_B: floating-point images of shape (B, ...).

        Returns:
            Class probabilities `probs_BC`.

        Raises:
            TypeError: the images are not floating-point.
            ValueError: a layer in train mode would make the answer depend on chance or on the batch.
        """
        images_B = self._prepare(images_B)
        with torch.no_grad():
            return torch.cat([_run(self._layers, image) for image in torch.split(images_B, 1)]).softmax(dim=-1)

    def sample(self, images_B: Tensor | np.ndarray, *, samples: int = 100, seed: int = 0) -> Tensor:
        """Predict once under each of the first `samples` dropout masks of a seed.

        Memory beyond input and result stays bounded: 128 masks of one image pass at a time.

        Args:
            images_B: floating-point images of shape (B, ...).
            samples: number S of masks, at least 2.
            seed: 0 .. 2**64 - 1; the same seed gives the same masks everywhere.

        Returns:
            Class probabilities of each pass, `probs_SBC`.

        Raises:
            TypeError: the images are not floating-point, or the seed is no whole number.
            ValueError: fewer than 2 samples, a seed out of range, or a layer in train mode as in `predict`.
        """
        check_seed(seed)
        if samples < 2:
            raise ValueError(f"samples must be at least 2, got {samples}: one mask has no spread")
        images_B = self._prepare(images_B)
        if len(images_B) == 0:
            return self.predict(images_B).expand(samples, -1, -1)
        before, after = self._split_at_first_dropout()
        with torch.no_grad():
            features_B = [_run(before, image) for image in torch.split(images_B, 1)]
            chunks = [
                torch.stack([self._run_masked(after, features, chunk, seed) for features in features_B], dim=1).softmax(
                    dim=-1
                )
                for chunk in _chunks(samples)
            ]
        return torch.cat(chunks)

    def _split_at_first_dropout(self) -> tuple[list[nn.Module], list[nn.Module]]:
        for first, layer in enumerate(self._layers):
            if _is_active(layer):
                return self._layers[:first], self._layers[first:]
        raise ValueError("the network has no active dropout: it needs an nn.Dropout with p > 0")

    def _run_masked(self, layers: list[nn.Module], features: Tensor, chunk: range, seed: int) -> Tensor:
        """Run one image's features (1, ...) through the layers from the first active dropout on: logits (S, C)."""
        dropouts = 0
        match layers:
            case [nn.Dropout() as dropout, nn.Linear() as linear, *_] if _fits_plainly(linear, features):
                multipliers_SH = self._multiply_by(features, dropout, chunk, seed, 0)
                features = _linear_of_active(features, multipliers_SH, linear)
                layers, dropouts = layers[2:], 1
        for layer in layers:
            if _is_active(layer):
                features = features * self._multiply_by(features, layer, chunk, seed, dropouts)
                dropouts += 1
            elif not _is_dropout(layer):
                features = layer(features)
        return features

    def _multiply_by(self, features: Tensor, layer: _DropoutNd, chunk: range, seed: int, dropouts: int) -> Tensor:
        draw = _Draw(_mask_shape(layer, features), layer.p, chunk, seed, dropouts)
        return self._multipliers(draw, features.dtype, features.device)

    def _prepare(self, images_B: Tensor | np.ndarray) -> Tensor:
        for name, module in self._may_vary:
            if module.training or _needs_batch(module):
                raise ValueError(
                    f"layer {name}: {type(module).__name__} depends on chance or on the batch; "
                    "call network.eval() first (a batch norm also needs running statistics)"
                )
        images_B = torch.as_tensor(images_B)
        if not images_B.is_floating_point():
            raise TypeError(f"images must be floating-point, got {images_B.dtype}: divide 0..255 by 255")
        return images_B if self._parameter is None else images_B.to(self._parameter)


def _is_dropout(layer: nn.Module) -> TypeGuard[_DropoutNd]:
    """Whether the layer is dropout that masks stand in for: torch's own, of units or channels, and nothing besides."""
    return isinstance(layer, _DropoutNd) and type(layer).forward in _DROPOUT_FORWARDS


def _is_active(layer: nn.Module) -> TypeGuard[_DropoutNd]:
    return _is_dropout(layer) and layer.p > 0


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001 - torch has no public question


def _is_sequence(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether calling the module does no more than calling its children one after the other."""
    return (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not _has_hooks(module)
    )


def _flatten(network: nn.Sequential, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, layer in network._modules.items():  # noqa: SLF001 - named_children tells a layer used twice only once
        if _is_sequence(layer):
            yield from _flatten(layer, f"{path}{name}.")
        else:
            yield f"{path}{name}", layer


def _refuse_unreachable_dropout(name: str, layer: nn.Module) -> None:
    if _is_dropout(layer):
        return
    for inner, module in layer.named_modules(prefix=name):
        if (isinstance(module, _DropoutNd) and module.p > 0) or (
            isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and module.dropout > 0
        ):
            raise TypeError(
                f"layer {inner}: {type(module).__name__} can't be masked there; "
                "use nn.Dropout or nn.Dropout1d/2d/3d directly in an nn.Sequential"
            )


def _may_vary(module: nn.Module) -> bool:
    """Whether the mode decides what a module computes: known of torch.nn's own, feared of all others."""
    if _is_dropout(module):
        return False
    return isinstance(module, _MODE_SENSITIVE) or not type(module).__module__.startswith("torch.nn.")


def _needs_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _run(layers: Iterable[nn.Module], image: Tensor) -> Tensor:
    """Run one image through the layers with every unit kept."""
    features = image.clone()  # which in-place layers may write to
    for layer in layers:
        if not _is_dropout(layer):
            features = layer(features)
    return features


def _fits_plainly(layer: nn.Linear, features: Tensor) -> bool:
    """Whether calling the layer does no more than its formula (no subclass, no hooks), and has features (1, H) to."""
    return type(layer) is nn.Linear and not _has_hooks(layer) and features.shape == (1, layer.in_features)


def _linear_of_active(features: Tensor, multipliers_SH: Tensor, linear: nn.Linear) -> Tensor:
    """Apply masks and a linear layer to one image's features (1, H) through the units that aren't 0: (S, out).

    After a ReLU most units are 0, and a 0 stays 0 under every mask: leaving it out changes nothing but the time.
    """
    active = features[0].nonzero().squeeze(1)
    masked = multipliers_SH.index_select(1, active) * features[:, active]
    return nn.functional.linear(masked, linear.weight.index_select(1, active), linear.bias)


def _chunks(samples: int) -> Iterator[range]:
    for first in range(0, samples, _CHUNK):
        yield range(first, min(first + _CHUNK, samples))


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


@dataclass(frozen=True)
class _Draw:
    """What a chunk of masks depends on."""

    shape: tuple[int, ...]
    p: float
    chunk: range
    seed: int
    layer: int


def _draw_multipliers(draw: _Draw, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 for a dropped unit and 1 / (1 - p) for a kept one, of shape (samples of the chunk, *shape)."""
    keep = keep_masks(
        draw.shape, draw.p, samples=len(draw.chunk), seed=draw.seed, layer=draw.layer, first=draw.chunk.start
    )
    return torch.from_numpy(keep).to(device, dtype) * survivor_scale(draw.p)
