"""Multilayer perceptron with dropout (d2l.ai, "Dropout")."""

import math
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from model.mlp import MLPConfig


def build_mlp(config: MLPConfig) -> nn.Sequential:
    """Build the network of a configuration: images (B, *image) -> logits (B, classes).

    Weights have PyTorch's default initialization. The layers are named: keys of a state dict read `hidden1.weight`.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(config.image)
    for number, (units, p) in enumerate(zip(config.hidden, config.dropout, strict=True), start=1):
        layers[f"hidden{number}"] = nn.Linear(width, units)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"dropout{number}"] = nn.Dropout(p)
        width = units
    layers["logits"] = nn.Linear(width, config.classes)
    return nn.Sequential(layers)


def build_with_weights(config: MLPConfig, weights: Mapping[str, np.ndarray]) -> nn.Sequential:
    """Build the network with arrays as its parameters, in eval mode and without gradients; draws no random numbers."""
    with torch.device("meta"):
        network = build_mlp(config)
    state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(requires_grad=False)
