"""Train the view for poses of an adopted network: on its features, and on a thumbnail of each image."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.graph import Graph
from model.input_spec import InputSpec
from model.network.compile import to_onnx
from model.poses import PoseView
from training import poses
from training.adopt.inputs import prepare_image
from training.adopt.printing import show_progress
from training.adopt.saved import load_or_compute
from training.adopt.stored_images import StoredImage
from training.poses import Transforms, convolutions, scaled_view, train_network
from training.terminal import console

Array = np.ndarray

EPOCHS = 20
ORDINARY = {
    "rotation, degrees": poses.ORDINARY["rotation, degrees"],
    "shift, part of the side": 0.07,
    "scale": poses.ORDINARY["scale"],
    "brightness": poses.ORDINARY["brightness"],
    "blur, standard deviation, part of the side": 0.035,
    "noise, standard deviation": poses.ORDINARY["noise, standard deviation"],
}
_SIDE = 28  # pixels of a thumbnail, or up to twice as many
_MOST_IMAGES, _MOST_VERSIONS, _MOST_ROWS = 3000, 6, 12_000
_KINDS = 3  # ordinary, transformed, covered
_TOGETHER = 50  # images
_FOLDS = 3
_BATCH, _RATE, _WEIGHT_DECAY = 128, 2e-3, 0.5


class _Rows(NamedTuple):
    """What the network of the view learns from: thumbnails, features, kinds, and the image that each row shows."""

    thumbnails_R: Tensor
    features_RF: Tensor
    kinds_R: Tensor
    image_R: Tensor


class PoseNetwork(nn.Module):
    """Tells kinds of images by a thumbnail, and by the features of the main network; the logits of both are added.

    Args:
        shape: of a thumbnail, (C, H, W).
        features_NF: features of ordinary images, by whose mean and standard deviation features are scaled.
    """

    def __init__(self, shape: tuple[int, ...], features_NF: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_F", features_NF.mean(0))
        self.register_buffer("deviation_F", features_NF.std(0) + 1e-3 * features_NF.std() + 1e-6)
        self.of_thumbnail = convolutions(shape, dropout=0.3)
        self.of_features = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(features_NF.shape[1], 64), nn.ReLU(), nn.Linear(64, _KINDS)
        )

    def forward(self, thumbnails_B: Tensor, features_BF: Tensor) -> Tensor:
        """Compute logits (B, 3) of thumbnails (B, C, h, w) and features (B, F)."""
        by_features: Tensor = self.of_features((features_BF - self.mean_F) / self.deviation_F)
        by_thumbnail: Tensor = self.of_thumbnail(thumbnails_B)
        return by_features + by_thumbnail


class _OfImages(nn.Module):
    """The network with the whole images as its input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_B: Tensor, features_BF: Tensor) -> Tensor:
        """Compute logits (B, 3) of images (B, C, H, W) and features (B, F)."""
        logits: Tensor = self.network(thumbnails(images_B), features_BF)
        return logits


def thumbnails(images_B: Tensor) -> Tensor:
    """Average squares of pixels so that the shorter side has 28 to 55, or as many as it has: (B, C, h, w)."""
    size = max(min(images_B.shape[2:]) // _SIDE, 1)
    return functional.avg_pool2d(images_B, size)


class PoseFit:
    """Fits the view to the calibration images of an adopted network.

    The images are varied within `ORDINARY`, and transformed as in `training.poses`. What comes from outside an image
    has the colour of its edge. The score is scaled by images that the network was not trained with (three folds).

    Args:
        engine: the compiled network.
        spec: what it takes.
        images: the calibration images.
        folder: where results of the network are kept; created if missing.
        epochs: passes over the versions of the images.
    """

    def __init__(
        self, engine: Graph, spec: InputSpec, images: Sequence[StoredImage], folder: Path, *, epochs: int = EPOCHS
    ) -> None:
        self._engine, self._spec, self._images, self._folder = engine, spec, images, folder
        self._epochs = epochs

    def __call__(self, features_NF: Array, scores_N: Array) -> tuple[PoseView, Array]:
        """Fit the view.

        Args:
            features_NF: features of the N images in eval mode.
            scores_N: their scores by the other views.

        Returns:
            The view, and the images' scores by networks that were trained without them.
        """
        count = len(features_NF)
        order = np.random.default_rng(0).permutation(count)
        plain_N = torch.cat([thumbnails(self._inputs(self._read(part))) for part in _parts(np.arange(count))])
        rows, features = self._rows(order[:_MOST_IMAGES]), torch.from_numpy(features_NF)
        fold_N = torch.from_numpy(np.random.default_rng(1).permutation(count) % _FOLDS)
        log_odds_N = np.empty(count)
        for fold in range(_FOLDS):
            network = self._train(rows, fold_N[rows.image_R] != fold, features)
            left_out = fold_N == fold
            log_odds_N[left_out.numpy()] = _log_odds(network, plain_N[left_out], features[left_out])
        network = self._train(rows, torch.ones(len(rows.kinds_R), dtype=torch.bool), features)
        view = scaled_view(self._export(network, features), log_odds_N, scores_N, ORDINARY)
        return view, view.scaled(log_odds_N)

    def _rows(self, indices: Array) -> _Rows:
        """Vary and transform images, and compute the features."""
        versions = int(np.clip(_MOST_ROWS // (_KINDS * len(indices)), 1, _MOST_VERSIONS))
        parts = _parts(indices)
        found = []
        for number in show_progress(range(len(parts)), "transformed calibration images"):
            seeds = range(number, versions * len(parts), len(parts))
            described = json.dumps([[*seeds], [self._images[index].identity() for index in parts[number]]])
            path = self._folder / f"poses-{hashlib.sha256(described.encode()).hexdigest()[:32]}.npz"
            found.append(load_or_compute(path, partial(self._transform, parts[number], seeds)))
        return _Rows(
            *(
                torch.from_numpy(
                    np.concatenate([part[f"{name} {version}"] for version in range(versions) for part in found])
                )
                for name in _Rows._fields
            )
        )

    def _transform(self, indices: Array, seeds: Sequence[int]) -> dict[str, Array]:
        """For each seed, one ordinary, one transformed and one covered version of each image."""
        plain_B, chosen, arrays = self._read(indices), torch.from_numpy(indices), {}
        for version, seed in enumerate(seeds):
            transforms = Transforms(seed, "border")
            covered_B, hides_B = transforms.cover(transforms.vary(plain_B))
            kinds = [transforms.vary(plain_B), transforms.transform(plain_B), covered_B[hides_B]]
            images_R = self._inputs(torch.cat(kinds))
            rows = _Rows(
                thumbnails(images_R),
                torch.from_numpy(self._engine.predict_with_features(images_R.numpy())[1]),
                torch.repeat_interleave(torch.tensor([len(one) for one in kinds])),
                torch.cat([chosen, chosen, chosen[hides_B]]),
            )
            arrays |= {f"{name} {version}": array.numpy() for name, array in rows._asdict().items()}
        return arrays

    def _read(self, indices: Array) -> Tensor:
        """Read images: float32 in [0, 1] of shape (B, C, H, W)."""
        return as_unit_range(np.stack([prepare_image(self._images[index], self._spec) for index in indices]))

    def _inputs(self, images_B: Tensor) -> Tensor:
        """What the main network takes."""
        return torch.from_numpy(self._spec.normalize(as_pixels(images_B)))

    def _train(self, rows: _Rows, is_used_R: Tensor, features_NF: Tensor) -> nn.Module:
        used = _Rows(*(one[is_used_R] for one in rows))
        generator = torch.Generator().manual_seed(0)

        def draw() -> tuple[tuple[Tensor, Tensor], Tensor]:
            index_B = torch.randint(0, len(used.kinds_R), (_BATCH,), generator=generator)
            return (used.thumbnails_R[index_B], used.features_RF[index_B]), used.kinds_R[index_B]

        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            network = PoseNetwork(tuple(rows.thumbnails_R.shape[1:]), features_NF)
            steps = self._epochs * len(used.kinds_R) // _BATCH + 1
            return train_network(network, draw, steps=steps, rate=_RATE, weight_decay=_WEIGHT_DECAY, console=console)

    def _export(self, network: nn.Module, features_NF: Tensor) -> bytes:
        images = torch.zeros(2, *self._spec.shape)
        axis = {0: torch.export.Dim("images")}
        inputs = (images, features_NF[:2])
        return to_onnx(_OfImages(network).eval(), inputs, (axis, axis), ["image", "features"], ["logits"])


def as_unit_range(pixels_BHW: Array) -> Tensor:
    """Turn uint8 pixels, (B, H, W) or (B, H, W, 3), into float32 images in [0, 1] of shape (B, C, H, W)."""
    pixels_BHWC = pixels_BHW.reshape(*pixels_BHW.shape[:3], -1)
    return torch.from_numpy(pixels_BHWC.astype(np.float32)).permute(0, 3, 1, 2).contiguous() / 255


def as_pixels(images_B: Tensor) -> Array:
    """Turn images in [0, 1] of shape (B, C, H, W) into uint8 pixels, (B, H, W) or (B, H, W, 3)."""
    pixels_BHWC = (images_B * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels_BHWC[..., 0] if pixels_BHWC.shape[-1] == 1 else pixels_BHWC


def _parts(indices: Array) -> list[Array]:
    return [indices[first : first + _TOGETHER] for first in range(0, len(indices), _TOGETHER)]


def _log_odds(network: nn.Module, thumbnails_B: Tensor, features_BF: Tensor) -> Array:
    """As `PoseView.log_odds`, of thumbnails and features."""
    with torch.no_grad():
        logits_BK = network(thumbnails_B, features_BF).double()
    log_odds_B: Array = (logits_BK[:, 1:].logsumexp(1) - logits_BK[:, 0]).numpy()
    return log_odds_B
