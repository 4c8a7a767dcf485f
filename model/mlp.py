"""Multilayer perceptron with dropout (d2l.ai, "Dropout")."""

import math
from collections import OrderedDict
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Architecture of a multilayer perceptron with dropout after each hidden layer.

    The defaults are those of the d2l.ai chapter "Dropout".

    Raises:
        ValueError: a size is below 1, a probability lies outside [0, 1], or there is not one for each hidden layer.
    """

    image: tuple[int, ...] = (1, 28, 28)
    hidden: tuple[int, ...] = (256, 256)
    dropout: tuple[float, ...] = (0.2, 0.5)
    classes: int = 10

    def __post_init__(self) -> None:
        sizes = (*self.image, *self.hidden, self.classes)
        if not all(type(size) is int and size >= 1 for size in sizes):
            raise ValueError(f"sizes must be whole numbers of at least 1, got {self}")
        if len(self.dropout) != len(self.hidden):
            raise ValueError(f"one dropout probability for each hidden layer: got {self.dropout} for {self.hidden}")
        if not all(0 <= p <= 1 for p in self.dropout):
            raise ValueError(f"dropout probabilities must be in [0, 1], got {self.dropout}")


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
