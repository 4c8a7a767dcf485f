"""Dropout for networks that were trained without it: before the last linear layer."""

from typing import Any

import torch
from torch import Tensor, nn

from training.adopt.errors import NetworkError

_NAME = "dropout"


def inject_dropout(network: nn.Module, image_1: Tensor, p: float) -> str:
    """Insert dropout before the linear layer that yields the logits; the network is changed.

    Args:
        network: from images (B, C, H, W) to logits (B, K), in eval mode.
        image_1: an image (1, C, H, W) that shows which layer is the last.
        p: probability of dropping a unit.

    Returns:
        Path of the layer; empty if it is the network itself.

    Raises:
        NetworkError: the logits don't come from a linear layer, or from one that is used more than once.
    """
    called: list[tuple[str, nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda one, _, output, path=path: called.append((path, one, output)))
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = network(image_1.clone())
    finally:
        for hook in hooks:
            hook.remove()
    last = [(path, layer) for path, layer, output in called if output is logits]
    if not last:
        raise NetworkError(
            "--inject-dropout needs a network that returns what its last nn.Linear returns: insert nn.Dropout in the "
            "code of this network"
        )
    ((path, layer),) = last
    if sum(one is layer for _, one, _ in called) > 1:
        raise NetworkError(
            f"--inject-dropout: the last linear layer {path} is used more than once: insert nn.Dropout in the code of "
            "this network"
        )
    # A hook, so that the layer stays where and what it is for the network's own code.
    layer.add_module(_NAME, nn.Dropout(p).train(layer.training))
    layer.register_forward_pre_hook(_drop, with_kwargs=True)
    return path


def _drop(layer: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> tuple[Any, Any]:
    """Drop features of the input of a linear layer, which is its only argument, with or without its name."""
    dropout = layer.get_submodule(_NAME)
    return tuple(map(dropout, given)), {name: dropout(features) for name, features in named.items()}
