"""Whether an image is like those of the training at all."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from model.calibration import optional
from model.chain import Array, Chain

FALSE_ALARM_RATES = (0.001, 0.01, 0.05)
FEATURES = ("image", "first layer", "activations")
_DARK = 0.02
_LANES = 16  # numbers of float32 in the longest vector of a processor, which BLAS fills with one of each image

Multiply = Callable[[Array, Array], Array]  # rows (B, F) with a matrix (F, G)


def features(chain: Chain, images_B: Array, multiply: Multiply = np.matmul) -> dict[str, Array]:
    """Three views of images, each of shape (B, F).

    Args:
        chain: the network, from vectors of pixels on.
        images_B: in [0, 1], of shape (B, 1, H, W).
        multiply: how.

    Returns:
        "image": mean, standard deviation, largest value, part that is dark, and logarithms of the mean differences
        between neighbours; "first layer": what the first linear layer gives, before its ReLU; "activations": square
        roots of what all ReLUs give.
    """
    units_BU = images_B.reshape(len(images_B), math.prod(images_B.shape[1:]))
    before, after = chain.stages()
    linear, active = [], []
    for stage in (*before, *after):
        if stage.relu:
            units_BU = np.maximum(units_BU, 0)
            active.append(np.sqrt(units_BU))
        weight_VU, bias_V = stage.linear.arrays()
        units_BU = multiply(units_BU, weight_VU.T)
        units_BU += bias_V
        linear.append(units_BU)
    return {
        "image": _statistics(images_B[:, 0]),
        "first layer": linear[0],
        "activations": np.concatenate(active, axis=1),
    }


def _statistics(pixels_BHW: Array) -> Array:
    flat_BP = pixels_BHW.reshape(len(pixels_BHW), math.prod(pixels_BHW.shape[1:]))
    count = flat_BP.shape[1]
    mean_B = flat_BP.sum(axis=1) / count
    deviation_B = np.sqrt(np.maximum(np.vecdot(flat_BP, flat_BP) / count - mean_B * mean_B, 0))
    dark_B = (flat_BP < _DARK).sum(axis=1) / count
    down_B = _mean_size(pixels_BHW[:, 1:] - pixels_BHW[:, :-1])
    right_B = _mean_size(pixels_BHW[:, :, 1:] - pixels_BHW[:, :, :-1])
    steps = (np.log(down_B + 0.01), np.log(right_B + 0.01))
    return np.stack([mean_B, deviation_B, flat_BP.max(axis=1), dark_B, *steps], axis=1)


def _mean_size(values_BHW: Array) -> Array:
    flat_BP = values_BHW.reshape(len(values_BHW), math.prod(values_BHW.shape[1:]))
    np.abs(flat_BP, out=flat_BP)
    mean_B: Array = flat_BP.sum(axis=1) / flat_BP.shape[1]  # NumPy's mean costs more than the sum
    return mean_B


@dataclass(frozen=True)
class ClassGaussians:
    """One normal distribution of features for each class, of the same covariance (Lee et al. 2018, arXiv:1807.03888).

    Attributes:
        whiten_FF: makes the covariance the identity: rows are features.
        means_KF: of the whitened features, one for each class.
        typical: median of `distance` over calibration images.
        far: its 99th percentile.
    """

    whiten_FF: Array
    means_KF: Array
    typical: float
    far: float

    def distance(self, features_BF: Array, multiply: Multiply = np.matmul) -> Array:
        """Squared Mahalanobis distance to the nearest class, (B,)."""
        white_BF = multiply(features_BF, self.whiten_FF)
        squares_BK = np.vecdot(self.means_KF, self.means_KF) - 2 * multiply(white_BF, self.means_KF.T)
        nearest_B: Array = np.vecdot(white_BF, white_BF) + squares_BK.min(axis=1)
        return nearest_B

    def score(self, features_BF: Array, multiply: Multiply = np.matmul) -> Array:
        """Distance on a scale on which 0 is typical and 1 is far, (B,)."""
        score_B: Array = (self.distance(features_BF, multiply) - self.typical) / (self.far - self.typical)
        return score_B


def _by_active(features_1F: Array, matrix_FG: Array) -> Array:
    """Multiply one row, if most of its features are 0 by the others only, which is faster."""
    active = features_1F[0].nonzero()[0]
    if len(active) < len(matrix_FG) / 2:
        features_1F = features_1F.take(active, axis=1, mode="clip")
        matrix_FG = matrix_FG.take(active, axis=0, mode="clip")
    product_1G: Array = features_1F @ matrix_FG
    return product_1G


def _by_lanes(features_BF: Array, matrix_FG: Array) -> Array:
    """Multiply B rows, a multiple of `_LANES`, each as it would be among any others.

    The order in which BLAS sums depends on where a row lies in its blocks, and shows in float32. Of so many rows each
    has a lane of the same vectors, so that the same is done to all.
    """
    rows, count = features_BF.shape
    lanes_NFL = features_BF.reshape(rows // _LANES, _LANES, count).transpose(0, 2, 1)
    product_NLG = (matrix_FG.T @ lanes_NFL).transpose(0, 2, 1)
    return np.ascontiguousarray(product_NLG).reshape(rows, matrix_FG.shape[1])


@dataclass(frozen=True)
class Novelty:
    """Scores how unlike the training's an image is: by the view in which it is farthest.

    Attributes:
        gaussians: of each of `FEATURES`.
        thresholds: by false-alarm rate, the score that only such a part of images like the training's exceeds; None
            where there were too few images to know.
    """

    gaussians: Mapping[str, ClassGaussians]
    thresholds: Mapping[float, float | None]

    def score(self, chain: Chain, images_B: Array) -> Array:
        """Score images in [0, 1] by the network that the distributions were fitted to.

        An image's score doesn't depend on its neighbours, but differs from that of `score_alone` by rounding.

        Args:
            chain: the network, from vectors of pixels on.
            images_B: of shape (B, 1, H, W).

        Returns:
            Scores (B,).
        """
        padded_B = np.pad(images_B, [(0, -len(images_B) % _LANES), (0, 0), (0, 0), (0, 0)])
        views = features(chain, padded_B, _by_lanes)
        scores: Array = np.max([self.gaussians[name].score(views[name], _by_lanes) for name in FEATURES], axis=0)
        return scores[: len(images_B)]

    def score_alone(self, chain: Chain, image_1: Array) -> float:
        """Score one image, (1, 1, H, W), in half of the time that it takes `score`."""
        views = features(chain, image_1)
        return max(float(self.gaussians[name].score(views[name], _by_active)[0]) for name in FEATURES)

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name, for a file."""
        return {
            f"{name} {what}": torch.from_numpy(np.ascontiguousarray(array))
            for name, gaussian in self.gaussians.items()
            for what, array in (("whiten", gaussian.whiten_FF), ("means", gaussian.means_KF))
        }

    def to_json(self) -> dict[str, Any]:
        """The numbers, for the card."""
        return {
            "scales": {name: [gaussian.typical, gaussian.far] for name, gaussian in self.gaussians.items()},
            "thresholds": {str(rate): threshold for rate, threshold in self.thresholds.items()},
        }

    @classmethod
    def of(cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Put together what `tensors` and `to_json` gave.

        Raises:
            ValueError: something is missing or not what it should be.
        """
        try:
            gaussians = {}
            for name in FEATURES:
                whiten_FF, means_KF = (tensors[f"{name} {what}"].numpy() for what in ("whiten", "means"))
                if whiten_FF.ndim != 2 or means_KF.ndim != 2 or means_KF.shape[1:] != whiten_FF.shape[1:]:
                    raise ValueError(f"{name}: shapes {whiten_FF.shape} and {means_KF.shape} don't fit")
                typical, far = map(float, fields["scales"][name])
                gaussians[name] = ClassGaussians(whiten_FF, means_KF, typical, far)
            thresholds = {rate: optional(fields["thresholds"][str(rate)]) for rate in FALSE_ALARM_RATES}
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a novelty score, got one with a bad {error}") from error
        return cls(gaussians, thresholds)
