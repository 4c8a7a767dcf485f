"""Inspection of the layers of a sequential network."""

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

_DROPOUT_FORWARDS = {kind.forward for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)}


def is_dropout(layer: nn.Module) -> TypeGuard[_DropoutNd]:
    """Whether the layer is torch's own dropout of units or channels, which explicit masks can replace."""
    return isinstance(layer, _DropoutNd) and type(layer).forward in _DROPOUT_FORWARDS


def is_active(layer: nn.Module) -> TypeGuard[_DropoutNd]:
    """Whether the layer is such dropout with p > 0."""
    return is_dropout(layer) and layer.p > 0


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks that run when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001 - torch has no public accessor


def layers_of(network: nn.Sequential, caller: str) -> list[tuple[str, nn.Module]]:
    """List the layers with their names, including those of nested `nn.Sequential`.

    Args:
        network: the network.
        caller: name of the calling class, for the error message.

    Raises:
        TypeError: the network is not an `nn.Sequential`, or does more than call its layers.
    """
    if not _is_sequence(network):
        raise TypeError(
            f"{caller} needs an nn.Sequential, got {type(network).__name__} "
            "(its hooks and its own forward would be ignored)"
        )
    return list(_flatten(network, ""))


class Structure:
    """Record of the layers of a network, to detect later changes.

    Args:
        network: a network that `layers_of` accepts.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self._layers_by_sequence = [(modules, tuple(modules.values())) for modules in _sequences(network)]
        modules = network.modules()
        parameters_by_name = [(module._parameters, name) for module in modules for name in module._parameters]  # noqa: SLF001
        self._first_parameter = next(
            ((parameters, name) for parameters, name in parameters_by_name if parameters[name] is not None), None
        )

    @property
    def parameter(self) -> Tensor | None:
        """The network's current first parameter; None if it has no parameters."""
        if self._first_parameter is None:
            return None
        parameters, name = self._first_parameter
        return parameters[name]

    def is_current(self) -> bool:
        """Whether no layer was replaced, added or removed since."""
        return all(tuple(modules.values()) == layers for modules, layers in self._layers_by_sequence)


def split_at_first_dropout(layers: list[nn.Module]) -> tuple[list[nn.Module], list[nn.Module]]:
    """Split into the layers before the first active dropout, and the layers from there on.

    Raises:
        ValueError: no dropout is active.
    """
    for first, layer in enumerate(layers):
        if is_active(layer):
            return layers[:first], layers[first:]
    raise ValueError("the network has no active dropout: it needs an nn.Dropout with p > 0")


def _is_sequence(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether calling the module only calls its children in order."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not has_hooks(module)


def _sequences(network: nn.Sequential) -> Iterator[Mapping[str, nn.Module | None]]:
    """Yield torch's dictionaries of the children of the network and of its nested sequences."""
    yield network._modules  # noqa: SLF001 - read at each call
    for layer in network:
        if _is_sequence(layer):
            yield from _sequences(layer)


def _flatten(network: nn.Sequential, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in network._modules.items():  # noqa: SLF001 - named_children lists a shared layer only once
        if _is_sequence(layer):
            yield from _flatten(layer, f"{path}{name}.")
        else:
            yield f"{path}{name}", layer


def as_images(images_B: Tensor | np.ndarray, parameter: Tensor | None) -> Tensor:
    """Convert images to a tensor with the dtype and device of a network's parameter.

    Raises:
        TypeError: the images are not floating-point.
    """
    images_B = torch.as_tensor(images_B)
    if not images_B.is_floating_point():
        raise TypeError(f"images must be floating-point, got {images_B.dtype}: divide 0..255 by 255")
    return images_B if parameter is None else images_B.to(parameter)
