"""Monte-Carlo dropout: many masks for the price of little more than one pass."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from model.chain import Chain, is_link, one_thread
from model.dropout import BLOCK, Draw, Masks, check_masks, check_seed, keep_masks, mask_chunks, survivor_scale
from model.layers import Structure, as_images, has_hooks, is_active, is_dropout, layers_of, split_at_first_dropout
from model.uncertainty import Uncertainty, summarize

_FIRST_SAMPLES = 2 * BLOCK
_CACHED_CHUNKS = 64  # kept for the next call, one for each dropout layer and chunk of samples

# Axes of the features, batch included, at which channel dropout drops channels: with one axis fewer, torch takes the
# first for channels and the batch for one example.
_CHANNEL_DROPOUT = {nn.Dropout1d: (3,), nn.Dropout2d: (3, 4), nn.Dropout3d: (5,)}
_PROBABILITIES = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.Sigmoid)
_CHAIN_DTYPES = (torch.float32, torch.float64)
# What torch.nn computes at random, or from the whole batch, in train mode.
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
        self._network = network
        self._read()

    def __reduce__(self) -> tuple[type, tuple[nn.Sequential]]:
        """Pickle or copy the network alone: the rest is made anew."""
        return type(self), (self._network,)

    def _read(self) -> None:
        """Take the layers as they are now."""
        network = self._network
        layers = layers_of(network, "MonteCarloDropout")
        self._structure = Structure(network)
        for name, layer in layers:
            _refuse_unreachable_dropout(name, layer)
        self._layers = [layer for _, layer in layers]
        split_at_first_dropout(self._layers)
        last_name, last = layers[-1]
        if isinstance(last, _PROBABILITIES):
            raise TypeError(f"the network must end in logits, but its last layer {last_name} is {type(last).__name__}")
        self._may_vary = [(name, module) for name, layer in layers for module in layer.modules() if _may_vary(module)]
        known = all(_is_of_torch(module) for layer in self._layers for module in layer.modules())
        # Faster; but what a module keeps of its input for later could not be used with gradients.
        self._without_gradients = torch.inference_mode if known else torch.no_grad
        self._may_write = not known or any(_may_write(module) for layer in self._layers for module in layer.modules())
        start = _start_of_chain(self._layers)
        self._before_chain, links = self._layers[:start], self._layers[start:]
        self._flattens = isinstance(links[0], nn.Flatten) if links else False
        self._chain = Chain(links)
        self._multipliers = lru_cache(maxsize=_CACHED_CHUNKS)(_draw_multipliers)

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
            return _join([_softmax(_run(self._layers, image)) for image in self._one_by_one(images_B)], dim=0)

    def sample(
        self, images_B: Tensor | np.ndarray, *, samples: int = 100, seed: int = 0, masks: Masks = "stratified"
    ) -> Tensor:
        """Predict once under each of the first `samples` dropout masks of a seed.

        Memory beyond input and result stays bounded: up to 100 masks of one image pass at a time.

        Args:
            images_B: floating-point images of shape (B, ...).
            samples: number S of masks, at least 2.
            seed: 0 .. 2**64 - 1; the same seed gives the same masks everywhere.
            masks: the design, see `keep_masks`. Means over stratified masks have the error of several times as many
                independent ones.

        Returns:
            Class probabilities of each pass, `probs_SBC`.

        Raises:
            TypeError: the images are not floating-point, or the seed is no whole number.
            ValueError: fewer than 2 samples, a seed out of range, an unknown design, or a layer in train mode as in
                `predict`.
        """
        check_seed(seed)
        check_masks(masks)
        if samples < 2:
            raise ValueError(f"samples must be at least 2, got {samples}: one mask has no spread")
        images_B = self._prepare(images_B)
        if len(images_B) == 0:
            return self.predict(images_B).expand(samples, -1, -1)
        if self._ends_in_chain(images_B):
            vectors_B = self._vectors(images_B)
            with one_thread(), np.errstate(all="ignore"):
                logits_BCS = self._chain.sample(vectors_B, samples=samples, seed=seed, masks=masks)
            return torch.from_numpy(logits_BCS).softmax(dim=1).permute(2, 0, 1)
        before, after = split_at_first_dropout(self._layers)
        with self._without_gradients():
            features_B = [_run(before, image) for image in self._one_by_one(images_B)]
            logits = [
                torch.stack([self._run_masked(after, features, (chunk, seed, masks)) for features in features_B], dim=1)
                for chunk in mask_chunks(samples, features_B[0].numel())
            ]
        return _softmax(_join(logits, dim=0))

    def sample_until(
        self,
        images_B: Tensor | np.ndarray,
        *,
        tolerance: float = 0.005,
        max_samples: int = 1000,
        seed: int = 0,
        masks: Masks = "stratified",
    ) -> tuple[Tensor, Uncertainty]:
        """Predict under as many masks as it takes to know the probability of the most probable class.

        The number grows from 20, by what the standard error so far lets expect, until that of the most probable class
        of every image is within the tolerance, or `max_samples` is reached. The result is that of `sample` with the
        number used.

        Args:
            images_B: floating-point images of shape (B, ...).
            tolerance: standard error that suffices, above 0.
            max_samples: where to stop in any case, at least 2.
            seed: as in `sample`.
            masks: as in `sample`.

        Returns:
            `probs_SBC`, and their summary, whose standard errors tell whether the tolerance was met.

        Raises:
            TypeError: as in `sample`.
            ValueError: a tolerance of 0 or less, or as in `sample`.
        """
        if not tolerance > 0:
            raise ValueError(f"the tolerance must be above 0, got {tolerance}")
        samples = min(_FIRST_SAMPLES, max_samples)
        while True:
            probs_SBC = self.sample(images_B, samples=samples, seed=seed, masks=masks)
            found = summarize(probs_SBC, masks=masks)
            top_B = found.mean.argmax(dim=-1, keepdim=True)
            error = float(found.standard_error.gather(1, top_B).amax()) if len(top_B) else 0.0
            if error <= tolerance or samples == max_samples:
                return probs_SBC, found
            excess = min(error / tolerance, max_samples)  # whose square can't overflow
            wanted = math.ceil(samples * excess**2 / BLOCK) * BLOCK
            samples = min(max(wanted, samples + BLOCK), 4 * samples, max_samples)

    def _one_by_one(self, images_B: Tensor) -> Iterable[Tensor]:
        """Split into batches of one; copies, where a layer might write to its input."""
        images = [images_B] if len(images_B) == 1 else torch.split(images_B, 1)
        return [image.clone() for image in images] if self._may_write else images

    def _ends_in_chain(self, images_B: Tensor) -> bool:
        """Whether NumPy can compute all layers from the first active dropout on, and some before."""
        return (
            images_B.is_cpu
            and images_B.dtype in _CHAIN_DTYPES
            and (images_B.ndim == 2 or self._flattens)
            and self._chain.is_intact()
            and not any(map(is_active, self._before_chain))
        )

    def _vectors(self, images_B: Tensor) -> Sequence[np.ndarray]:
        """Run images through the layers before the chain."""
        if not self._before_chain:
            return list(images_B.numpy(force=True).reshape(len(images_B), -1))
        with self._without_gradients():
            return [_run(self._before_chain, image).flatten().numpy(force=True) for image in self._one_by_one(images_B)]

    def _run_masked(self, layers: list[nn.Module], features: Tensor, draw: Draw) -> Tensor:
        """Run one image's features (1, ...) through the layers from the first active dropout on: logits (S, C)."""
        dropouts = 0
        for layer in layers:
            if is_active(layer):
                shape = _mask_shape(layer, features)
                features = features * self._multipliers(shape, layer.p, dropouts, draw, features.dtype, features.device)
                dropouts += 1
            elif not is_dropout(layer):
                features = layer(features)
        return features

    def _prepare(self, images_B: Tensor | np.ndarray) -> Tensor:
        if not self._structure.is_current():
            self._read()
        for name, module in self._may_vary:
            if module.training or _needs_batch(module):
                raise ValueError(
                    f"layer {name}: {type(module).__name__} depends on chance or on the batch; "
                    "call network.eval() first (a batch norm also needs running statistics)"
                )
        return as_images(images_B, self._structure.parameter)


def _refuse_unreachable_dropout(name: str, layer: nn.Module) -> None:
    if is_dropout(layer):
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
    if is_dropout(module):
        return False
    estimates = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())  # noqa: SLF001
    return estimates or isinstance(module, _MODE_SENSITIVE) or not _is_of_torch(module)


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _may_write(module: nn.Module) -> bool:
    """Whether a module may write to its input: known of torch.nn's own, feared of all others."""
    return getattr(module, "inplace", False) or not _is_of_torch(module)


def _needs_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _run(layers: Iterable[nn.Module], image: Tensor) -> Tensor:
    """Run one image through the layers with every unit kept."""
    for layer in layers:
        if not is_dropout(layer):
            image = layer(image) if has_hooks(layer) else layer.forward(image)
    return image


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities; of bfloat16, whose rows would not sum to 1, in float32."""
    return logits.softmax(dim=-1, dtype=torch.float32 if logits.dtype is torch.bfloat16 else None)


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _start_of_chain(layers: list[nn.Module]) -> int:
    """Index of the layer from which on all are a chain's: of the first that flattens, or 0 if all layers are."""
    links = [is_link(layer) for layer in layers]
    if isinstance(layers[-1], nn.Linear):
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.Flatten) and all(links[index:]):
                return index
        if all(links):
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


def _draw_multipliers(
    shape: tuple[int, ...], p: float, layer: int, draw: Draw, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """0 for a dropped unit and 1 / (1 - p) for a kept one, (S, *shape)."""
    samples, seed, masks = draw
    keep = keep_masks(shape, p, samples=len(samples), first=samples.start, seed=seed, layer=layer, masks=masks)
    return torch.from_numpy(keep).to(device, dtype) * survivor_scale(p)
