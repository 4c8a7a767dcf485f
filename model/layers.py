"""The layers that a sequential network is made of."""

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

_DROPOUT_FORWARDS = {kind.forward for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)}


def is_dropout(layer: nn.Module) -> TypeGuard[_DropoutNd]:
    """Whether the layer is dropout that masks stand in for: torch's own, of units or channels, and nothing besides."""
    return isinstance(layer, _DropoutNd) and type(layer).forward in _DROPOUT_FORWARDS


def is_active(layer: nn.Module) -> TypeGuard[_DropoutNd]:
    """Whether the layer is such dropout, and drops anything."""
    return is_dropout(layer) and layer.p > 0


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module calls something else too."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001 - torch has no public question


def layers_of(network: nn.Sequential, user: str) -> list[tuple[str, nn.Module]]:
    """List the layers, those of nested sequences too, with their names.

    Raises:
        TypeError: the network is no sequence, or does more than call its layers; `user` says who asked.
    """
    if not _is_sequence(network):
        raise TypeError(
            f"{user} needs an nn.Sequential, got {type(network).__name__} "
            "(hooks and a forward of its own would be passed over)"
        )
    return list(_flatten(network, ""))


class Structure:
    """Which layers a network consists of, to notice when they are not the same any more.

    Args:
        network: a sequence that `layers_of` takes.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self._kept = [(modules, tuple(modules.values())) for modules in _sequences(network)]
        own = [(module._parameters, name) for module in network.modules() for name in module._parameters]  # noqa: SLF001
        self._first = next(((parameters, name) for parameters, name in own if parameters[name] is not None), None)

    @property
    def parameter(self) -> Tensor | None:
        """The first parameter that the network has now; None without any."""
        if self._first is None:
            return None
        parameters, name = self._first
        return parameters[name]

    def is_current(self) -> bool:
        """Whether no layer has been replaced, added or removed since."""
        return all(tuple(modules.values()) == layers for modules, layers in self._kept)


def split_at_first_dropout(layers: list[nn.Module]) -> tuple[list[nn.Module], list[nn.Module]]:
    """Split into the layers before the first active dropout, and the others, that dropout first.

    Raises:
        ValueError: no active dropout.
    """
    for first, layer in enumerate(layers):
        if is_active(layer):
            return layers[:first], layers[first:]
    raise ValueError("the network has no active dropout: it needs an nn.Dropout with p > 0")


def _is_sequence(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether calling the module does no more than calling its children one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not has_hooks(module)


def _sequences(network: nn.Sequential) -> Iterator[Mapping[str, nn.Module | None]]:
    """The children of the network and of the sequences in it, as torch keeps them."""
    yield network._modules  # noqa: SLF001 - read at each call
    for layer in network:
        if _is_sequence(layer):
            yield from _sequences(layer)


def _flatten(network: nn.Sequential, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in network._modules.items():  # noqa: SLF001 - named_children tells a layer used twice only once
        if _is_sequence(layer):
            yield from _flatten(layer, f"{path}{name}.")
        else:
            yield f"{path}{name}", layer


def as_images(images_B: Tensor | np.ndarray, parameter: Tensor | None) -> Tensor:
    """Take images as a tensor of the network's dtype and device, those of one of its parameters.

    Raises:
        TypeError: the images are not floating-point.
    """
    images_B = torch.as_tensor(images_B)
    if not images_B.is_floating_point():
        raise TypeError(f"images must be floating-point, got {images_B.dtype}: divide 0..255 by 255")
    return images_B if parameter is None else images_B.to(parameter)
