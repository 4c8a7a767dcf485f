"""Small networks that use dropout in many ways, and a slow loop over masks to hold others against."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model import keep_masks

SIZES = [(64, 12), (12, 12), (12, 12), (12, 4)]  # of the matrices of the MLP


class Residual(nn.Module):
    """Two blocks h + f(dropout(h)) with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.drops = nn.ModuleList([nn.Dropout2d(0.3), nn.Dropout2d(0.2)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)])
        self.head = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for drop, conv, norm in zip(self.drops, self.convs, self.norms, strict=True):
            features = features + functional.relu(norm(conv(drop(features))), inplace=True)
        return self.head(features.mean((2, 3)))


class Dense(nn.Module):
    """Each layer sees all features so far; only what is new is dropped, by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1 + 3 * index, 3, 3, padding=1) for index in range(3)])
        self.head = nn.Linear(10, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for index, conv in enumerate(self.convs):
            drop = functional.dropout2d if index == 1 else functional.dropout
            features = torch.cat([features, drop(conv(features.relu()), p=0.25, training=self.training)], 1)
        return self.head(functional.dropout(features.amax((2, 3)), 0, self.training))


class Recurrent(nn.Module):
    """Channels over time: Dropout1d before an LSTM, and dropout after it. One of one layer has none inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.before, self.after = nn.Conv1d(8, 6, 3), nn.Dropout1d(0.3), nn.Dropout(0.4)
        with warnings.catch_warnings(action="ignore"):
            self.lstm, self.head = nn.LSTM(6, 6, dropout=0.5, batch_first=True), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        features, _ = self.lstm(self.before(self.conv(images[:, 0]).relu()).transpose(1, 2))
        return self.head(self.after(features[:, -1]))


class MLP(nn.Module):
    """One module of dropout used three times, with masks of its own each time, and dropout of p = 1 and p = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.all, self.none = nn.Dropout(0.3), nn.Dropout(1.0), nn.Dropout(0)
        self.first, self.second, self.third, self.head = (nn.Linear(*sizes) for sizes in SIZES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.drop(self.second(self.none(self.first(images.flatten(1)).relu())))
        features = features.relu() + self.all(features) + self.drop(self.third(features).tanh())
        return self.head(self.drop(features))


class InPlace(nn.Module):
    """Dropout and sums in place, of features before and after the first mask."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.channels = nn.Dropout(0.4, inplace=True), nn.Dropout2d(0.2, inplace=True)
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(36, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images.sub_(0.1)).relu_()
        features += self.channels(self.second(features))
        features += 1
        return self.head(self.drop(functional.max_pool2d(features, 2).flatten(1)))


class Patches(nn.Module):
    """Patches as rows: four for each image on the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop, self.head = nn.Linear(16, 6), nn.Dropout(0.3), nn.Linear(24, 4)

    def forward(self, images: Tensor) -> Tensor:
        patches = functional.unfold(images, 4, stride=4).transpose(1, 2).flatten(0, 1)
        features = self.drop(self.embed(patches).relu())
        return self.head(self.drop(features).view(images.shape[0], -1))


def by_hand(attention: nn.MultiheadAttention, features: Tensor) -> Tensor:
    """Self-attention of (images, tokens, features), by the formula."""
    weight, bias, heads = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
    query, key, value = (
        torch.stack(one.chunk(heads, -1), 1) for one in functional.linear(features, weight, bias).chunk(3, dim=-1)
    )
    scores = torch.einsum("bhle,bhse->bhls", query, key) / (features.shape[-1] / heads) ** 0.5
    weights = functional.dropout(scores.softmax(-1), attention.dropout, attention.training)
    return attention.out_proj(torch.cat((weights @ value).unbind(1), -1))


class Attention(nn.Module):
    """nn.MultiheadAttention over the rows of an image, which are its first or its second axis."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=batch_first)
        self.drop, self.head, self.batch_first = nn.Dropout(0.2), nn.Linear(8, 4), batch_first

    def forward(self, images: Tensor) -> Tensor:
        rows = self.drop(images[:, 0] if self.batch_first else images[:, 0].transpose(0, 1))
        features, _ = self.attention(rows, rows, rows)
        return self.head(features.mean(1 if self.batch_first else 0))

    def by_hand(self, images: Tensor) -> Tensor:
        rows = self.drop(images[:, 0])
        return self.head(by_hand(self.attention, rows).mean(1))


class Product(nn.Module):
    """functional.scaled_dot_product_attention, causal and of several heads, with a linear layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        heads = self.embed(images[:, 0]).view(-1, 8, 6, 4).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=1)
        p = 0.3 if self.training else 0.0
        features = functional.scaled_dot_product_attention(query, key, value, dropout_p=p, is_causal=True)
        return self.head(features.transpose(1, 2).flatten(2).amax(1))

    def by_hand(self, images: Tensor) -> Tensor:
        heads = self.embed(images[:, 0]).view(-1, 8, 6, 4).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=1)
        scores = torch.einsum("bhle,bhse->bhls", query, key) / 2 + torch.full((8, 8), -torch.inf).triu(1)
        features = torch.einsum("bhls,bhsv->blhv", functional.dropout(scores.softmax(-1), 0.3, self.training), value)
        return self.head(features.flatten(2).amax(1))


class Transformer(nn.Module):
    """A class token, positions, and one of torch's encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        options = {"dim_feedforward": 16, "dropout": 0.2, "batch_first": True}
        self.layer = nn.TransformerEncoderLayer(8, 2, **options)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 9, 8))
        self.head = nn.Linear(8, 4)

    def tokens(self, images: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), images[:, 0]], 1)
        return tokens + self.positions

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.tokens(images))[:, 0])

    def by_hand(self, images: Tensor) -> Tensor:
        layer, features = self.layer, self.tokens(images)
        features = layer.norm1(features + layer.dropout1(by_hand(layer.self_attn, features)))
        fed = layer.linear2(layer.dropout(layer.linear1(features).relu()))
        return self.head(layer.norm2(features + layer.dropout2(fed))[:, 0])


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2), nn.Conv2d(3, 6, 3), nn.Sigmoid()),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 10), nn.Sigmoid(), nn.Dropout(0.25), nn.Linear(10, 4)),
    )


def blocks() -> nn.Module:
    """Dropout in every block, of the pixels themselves first: no operation is shared by the masks."""
    convs = [layer for _ in range(2) for layer in (nn.Conv2d(2, 2, 3), nn.GELU(), nn.Dropout(0.2))]
    return nn.Sequential(nn.Dropout(0.1), nn.Conv2d(1, 2, 1), *convs, nn.Flatten(), nn.Linear(32, 4))


ZOO = {
    "mlp": MLP,
    "lenet": lenet,
    "blocks": blocks,
    "residual": Residual,
    "dense": Dense,
    "recurrent": Recurrent,
    "in place": InPlace,
    "patches": Patches,
    "attention, images first": lambda: Attention(batch_first=True),
    "attention, rows first": lambda: Attention(batch_first=False),
    "product": Product,
    "transformer": Transformer,
}
IMAGES_B = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(31))


def make(name: str) -> nn.Module:
    """A network with random parameters and statistics, every second one in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(32)
        network = ZOO[name]().requires_grad_(requires_grad=False)
        network(torch.randn(64, 1, 8, 8))  # gives batch norm its statistics
    return network.train(list(ZOO).index(name) % 2 == 1)


def loop(
    network: nn.Module, image_1: Tensor, samples: int, seed: int, masks: str = "stratified"
) -> tuple[Tensor, list[tuple[float, int]]]:
    """Compute logits (S, K), one pass for each mask; and the probability and size of the masks of a pass.

    torch.nn.functional.dropout, which torch's layers call too, multiplies by the next mask.
    """
    network = copy.deepcopy(network).eval()
    forward, passes = getattr(network, "by_hand", network), []
    for sample in range(samples):
        used: list[tuple[float, int]] = []

        def multiply(features: Tensor, p: float, shape: tuple[int, ...], sample=sample, used=used) -> Tensor:
            keep = keep_masks(shape, p, samples=1, first=sample, seed=seed, layer=len(used), masks=masks)[0]
            used.append((p, keep.size))
            return features * torch.from_numpy(keep) * (0 if p == 1 else 1 / (1 - p))

        def drop_units(features, p=0.5, training=True, inplace=False, multiply=multiply):
            dropped = multiply(features, p, features.shape) if p else features
            return features.copy_(dropped) if inplace else dropped

        def drop_channels(features, p=0.5, training=True, inplace=False, multiply=multiply):
            dropped = multiply(features, p, (*features.shape[:2], *[1] * (features.ndim - 2)))
            return features.copy_(dropped) if inplace else dropped

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(functional, "dropout", drop_units)
            for name in ("dropout1d", "dropout2d"):
                patch.setattr(functional, name, drop_channels)
            passes.append(forward(image_1.clone()))
    return torch.cat(passes), used
