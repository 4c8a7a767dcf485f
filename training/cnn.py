"""A small residual convolutional network for Fashion-MNIST, with dropout in its head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Architecture of the convolutional network.

    Attributes:
        channels: of the convolutions at 28 x 28, 14 x 14 and 7 x 7 pixels.
        hidden: units between the two dropouts.
        dropout: probabilities before and after the hidden layer.
        classes: number of logits.
    """

    channels: tuple[int, int, int] = (32, 64, 128)
    hidden: int = 128
    dropout: tuple[float, float] = (0.2, 0.4)
    classes: int = 10


class ResidualConvolution(nn.Module):
    """`ReLU(x + BatchNorm(Conv(x)))`, of equal input and output channels (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Transform features (B, channels, H, W)."""
        return torch.relu(features + self.norm(self.convolution(features)))


def build_cnn(config: CNNConfig) -> nn.Sequential:
    """Build the network with initial weights from torch's global generator.

    Returns:
        Layers from images (B, 1, 28, 28) in [0, 1] to logits (B, classes). What comes before the first dropout does not
        depend on masks; from there on the layers are linear, ReLU and dropout.
    """
    first, second, third = config.channels
    return nn.Sequential(
        *_convolution(1, first),
        nn.MaxPool2d(2),
        *_convolution(first, second),
        ResidualConvolution(second),
        nn.MaxPool2d(2),
        *_convolution(second, third),
        ResidualConvolution(third),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(config.dropout[0]),
        nn.Linear(third, config.hidden),
        nn.ReLU(),
        nn.Dropout(config.dropout[1]),
        nn.Linear(config.hidden, config.classes),
    )


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
