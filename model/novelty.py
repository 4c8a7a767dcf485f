"""Novelty score: how unlike ordinary images an image is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from model.calibration import optional_float
from model.chain import Array, Stages
from model.poses import PoseView
from model.uncertainty import entropy

FALSE_ALARM_RATES = (0.001, 0.01, 0.05)
STATISTICS = 5  # of features
FEATURES = ("image", "first layer", "activations")
View = Literal["appearance", "features", "pose"]
# What users read of the feature vectors.
_VIEWS: dict[str, View] = {"image": "appearance", "first layer": "features", "activations": "features"}
_DARK_BELOW = 0.02
_LANES = 16  # float32 numbers in the longest vector register of a processor; each image gets one lane

Multiply = Callable[[Array, Array], Array]  # rows (B, F) with a matrix (F, G)


def extract_features(chain: Stages, images_B: Array, multiply: Multiply = np.matmul) -> dict[str, Array]:
    """Compute three feature vectors (views) of each image.

    Args:
        chain: the network, applied to vectors of pixels.
        images_B: in [0, 1], of shape (B, 1, H, W).
        multiply: matrix product to use.

    Returns:
        Arrays of shape (B, F). "image": mean, standard deviation, maximum, fraction of dark pixels, and logarithms of
        the mean absolute vertical and horizontal differences; "first layer": output of the first linear layer, before
        its ReLU; "activations": square roots of the outputs of all ReLUs.
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
        "image": _image_statistics(images_B[:, 0]),
        "first layer": linear[0],
        "activations": np.concatenate(active, axis=1),
    }


def _image_statistics(pixels_BHW: Array) -> Array:
    flat_BP = pixels_BHW.reshape(len(pixels_BHW), math.prod(pixels_BHW.shape[1:]))
    count = flat_BP.shape[1]
    mean_B = flat_BP.sum(axis=1) / count
    deviation_B = np.sqrt(np.maximum(np.vecdot(flat_BP, flat_BP) / count - mean_B * mean_B, 0))
    dark_share_B = (flat_BP < _DARK_BELOW).sum(axis=1) / count
    down_B = _mean_absolute(pixels_BHW[:, 1:] - pixels_BHW[:, :-1])
    right_B = _mean_absolute(pixels_BHW[:, :, 1:] - pixels_BHW[:, :, :-1])
    steps = (np.log(down_B + 0.01), np.log(right_B + 0.01))
    return np.stack([mean_B, deviation_B, flat_BP.max(axis=1), dark_share_B, *steps], axis=1)


def _mean_absolute(values_BHW: Array) -> Array:
    flat_BP = values_BHW.reshape(len(values_BHW), math.prod(values_BHW.shape[1:]))
    np.abs(flat_BP, out=flat_BP)
    mean_B: Array = flat_BP.sum(axis=1) / flat_BP.shape[1]  # np.mean is slower than the sum
    return mean_B


@dataclass(frozen=True)
class ClassGaussians:
    """One normal distribution of features for each class, with shared covariance (Lee et al. 2018, arXiv:1807.03888).

    Attributes:
        whiten_FF: right factor that makes the covariance the identity.
        means_KF: mean of the whitened features of each class.
        median: median of `distance` over calibration images.
        percentile_99: 99th percentile of `distance` over calibration images.
    """

    whiten_FF: Array
    means_KF: Array
    median: float
    percentile_99: float

    def distance(self, features_BF: Array, multiply: Multiply = np.matmul) -> Array:
        """Compute the squared Mahalanobis distance to the nearest class, (B,)."""
        whitened_BF = multiply(features_BF, self.whiten_FF)
        squares_BK = np.vecdot(self.means_KF, self.means_KF) - 2 * multiply(whitened_BF, self.means_KF.T)
        nearest_B: Array = np.vecdot(whitened_BF, whitened_BF) + squares_BK.min(axis=1)
        return nearest_B

    def score(self, features_BF: Array, multiply: Multiply = np.matmul) -> Array:
        """Scale the distance, (B,): 0 is the median of calibration images, 1 their 99th percentile."""
        score_B: Array = (self.distance(features_BF, multiply) - self.median) / (self.percentile_99 - self.median)
        return score_B


def _multiply_sparse_row(features_1F: Array, matrix_FG: Array) -> Array:
    """Multiply one row; if most of its features are 0, skip those, which is faster."""
    active = features_1F[0].nonzero()[0]
    if len(active) < len(matrix_FG) / 2:
        features_1F = features_1F.take(active, axis=1, mode="clip")
        matrix_FG = matrix_FG.take(active, axis=0, mode="clip")
    product_1G: Array = features_1F @ matrix_FG
    return product_1G


def _multiply_in_lanes(features_BF: Array, matrix_FG: Array) -> Array:
    """Multiply B rows, a multiple of `_LANES`, so that no row's result depends on the other rows.

    BLAS sums in an order that depends on a row's position in its blocks, which changes float32 results. Here each row
    occupies one lane of the vector registers, so that all rows are summed in the same order.
    """
    rows, count = features_BF.shape
    lanes_NFL = features_BF.reshape(rows // _LANES, _LANES, count).transpose(0, 2, 1)
    product_NLG = (matrix_FG.T @ lanes_NFL).transpose(0, 2, 1)
    return np.ascontiguousarray(product_NLG).reshape(rows, matrix_FG.shape[1])


@dataclass(frozen=True)
class Novelty:
    """Model of the novelty score: the largest score over the views.

    The views are the distributions of three feature vectors, "image" as "appearance" and the others as "features", and
    "pose" if the model has it.

    Attributes:
        gaussians: distributions of each of `FEATURES`.
        thresholds: by false-alarm rate, the score that this fraction of in-distribution images exceeds; None where
            the calibration had too few images.
        poses: the view for poses; None if it was not fitted.
    """

    gaussians: Mapping[str, ClassGaussians]
    thresholds: Mapping[float, float | None]
    poses: PoseView | None = None

    def score(self, chain: Stages, images_B: Array) -> Array:
        """Score images in [0, 1] with the network to which the views were fitted.

        A score does not depend on the other images of the batch; it differs from that of `views_alone` by rounding.

        Args:
            chain: the network, applied to vectors of pixels.
            images_B: of shape (B, 1, H, W).

        Returns:
            Scores (B,).
        """
        scores_B: Array = np.max([*self.views(chain, images_B).values()], axis=0)
        return scores_B

    @property
    def view_names(self) -> tuple[View, ...]:
        """Names of the views, in the order of `views`."""
        return ("appearance", "features") if self.poses is None else ("appearance", "features", "pose")

    def views(self, chain: Stages, images_B: Array) -> dict[View, Array]:
        """The scores (B,) of each view; see `score`."""
        padded_B = np.pad(images_B, [(0, -len(images_B) % _LANES), (0, 0), (0, 0), (0, 0)])
        features = extract_features(chain, padded_B, _multiply_in_lanes)
        return self._views(features, images_B, _multiply_in_lanes)

    def views_alone(self, chain: Stages, image_1: Array) -> dict[View, Array]:
        """The scores (1,) of each view of one image, (1, 1, H, W), in half the time of `views`."""
        return self._views(extract_features(chain, image_1), image_1, _multiply_sparse_row)

    def _views(self, features: Mapping[str, Array], images_B: Array, multiply: Multiply) -> dict[View, Array]:
        scores: dict[View, Array] = {}
        for name, view in _VIEWS.items():
            score_B = self.gaussians[name].score(features[name], multiply)[: len(images_B)]
            scores[view] = np.maximum(scores[view], score_B) if view in scores else score_B
        if self.poses is not None:
            scores["pose"] = self.poses.score(images_B)
        return scores

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name, for a file."""
        arrays = {
            f"{name} {kind}": np.ascontiguousarray(array)
            for name, gaussian in self.gaussians.items()
            for kind, array in (("whiten", gaussian.whiten_FF), ("means", gaussian.means_KF))
        }
        return arrays if self.poses is None else arrays | self.poses.arrays()

    def to_json(self) -> dict[str, Any]:
        """Return scales and thresholds, for the card."""
        fields = {
            "scales": {name: [gaussian.median, gaussian.percentile_99] for name, gaussian in self.gaussians.items()},
            "thresholds": _thresholds_to_json(self.thresholds),
        }
        return fields if self.poses is None else fields | {"poses": self.poses.to_json()}

    @classmethod
    def from_parts(cls, fields: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Build a novelty model from the results of `to_json` and `arrays`.

        Raises:
            ValueError: an entry is missing or invalid.
        """
        try:
            gaussians = {}
            for name in FEATURES:
                whiten_FF, means_KF = (arrays[f"{name} {kind}"] for kind in ("whiten", "means"))
                if whiten_FF.ndim != 2 or means_KF.ndim != 2 or means_KF.shape[1:] != whiten_FF.shape[1:]:
                    raise ValueError(f"{name}: shapes {whiten_FF.shape} and {means_KF.shape} don't fit")
                median, percentile_99 = map(float, fields["scales"][name])
                gaussians[name] = ClassGaussians(whiten_FF, means_KF, median, percentile_99)
            thresholds = _thresholds_from_json(fields["thresholds"])
            poses = PoseView.from_parts(fields["poses"], arrays) if "poses" in fields else None
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a novelty score, got one with a bad {error}") from error
        return cls(gaussians, thresholds, poses)


@dataclass(frozen=True)
class FeatureNovelty:
    """Model of the novelty score of any network, for few calibration images: from its features and its entropy.

    The view "features" = scaled distance + scaled entropy, each scaled so that 0 is the median of calibration images
    and 1 their 95th percentile. The distance is the squared Mahalanobis distance of five statistics of the features
    before the last layer: hundreds of images determine five variables well, and thousands of features badly. The
    entropy is that of the class probabilities in eval mode. With the view "pose", the score is the larger of both.

    Attributes:
        scale: typical absolute value of a feature.
        mean_S: mean of the statistics.
        precision_SS: inverse of their covariance.
        scales: median and 95th percentile of "distance" and of "entropy".
        thresholds: as in `Novelty`.
        poses: the view for poses; None if it was not fitted.
    """

    scale: float
    mean_S: Array
    precision_SS: Array
    scales: Mapping[str, tuple[float, float]]
    thresholds: Mapping[float, float | None]
    poses: PoseView | None = None

    def score(self, features_BF: Array, probs_BC: Array, images_B: Array) -> Array:
        """The largest score (B,) over the views, float64; see `views`."""
        scores_B: Array = np.max([*self.views(features_BF, probs_BC, images_B).values()], axis=0)
        return scores_B

    def views(self, features_BF: Array, probs_BC: Array, images_B: Array) -> dict[View, Array]:
        """Score images by each view; a score does not depend on the other images.

        Args:
            features_BF: features before the last layer, in eval mode.
            probs_BC: class probabilities in eval mode.
            images_B: the images as the network takes them, of shape (B, C, H, W).

        Returns:
            Scores (B,) of "features" and, if the model has the view, of "pose", float64.
        """
        scores: dict[View, Array] = {"features": self.score_features(features_BF, probs_BC)}
        if self.poses is not None:
            scores["pose"] = self.poses.score(images_B, features_BF)
        return scores

    def score_features(self, features_BF: Array, probs_BC: Array) -> Array:
        """The scores (B,) of the view "features"; see `views`."""
        distance_B = feature_distance(features_BF, self.scale, self.mean_S, self.precision_SS)
        return combine_scores(distance_B, probs_BC, self.scales)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name, for a file."""
        arrays = {"mean": self.mean_S, "precision": self.precision_SS}
        return arrays if self.poses is None else arrays | self.poses.arrays()

    def to_json(self) -> dict[str, Any]:
        """Return scales and thresholds, for the card."""
        fields = {
            "kind": "features",
            "scale": self.scale,
            "scales": {name: list(pair) for name, pair in self.scales.items()},
            "thresholds": _thresholds_to_json(self.thresholds),
        }
        return fields if self.poses is None else fields | {"poses": self.poses.to_json()}

    @classmethod
    def from_parts(cls, fields: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Build a novelty model from the results of `to_json` and `arrays`.

        Raises:
            ValueError: an entry is missing or invalid.
        """
        try:
            mean_S, precision_SS = arrays["mean"], arrays["precision"]
            if mean_S.shape != (STATISTICS,) or precision_SS.shape != (STATISTICS, STATISTICS):
                raise ValueError(f"shapes {mean_S.shape} and {precision_SS.shape} don't fit")
            scales = {name: tuple(map(float, fields["scales"][name])) for name in ("distance", "entropy")}
            if not all(len(pair) == 2 and pair[1] > pair[0] for pair in scales.values()):
                raise ValueError(f"expected increasing scales, got {scales}")
            return cls(
                scale=float(fields["scale"]),
                mean_S=mean_S,
                precision_SS=precision_SS,
                scales={name: (pair[0], pair[1]) for name, pair in scales.items()},
                thresholds=_thresholds_from_json(fields["thresholds"]),
                poses=PoseView.from_parts(fields["poses"], arrays) if "poses" in fields else None,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a novelty score, got one with a bad {error}") from error


def combine_scores(distance_B: Array, probs_BC: Array, scales: Mapping[str, tuple[float, float]]) -> Array:
    """The view "features" of `FeatureNovelty`, (B,), of distances and class probabilities."""
    score_B = np.zeros(len(distance_B))
    for name, value_B in (("distance", distance_B), ("entropy", entropy(probs_BC.astype(np.float64)))):
        median, percentile_95 = scales[name]
        score_B += (value_B - median) / (percentile_95 - median)
    return score_B


def feature_statistics(features_BF: Array, scale: float) -> Array:
    """Five statistics of each row's features, (B, 5): mean, standard deviation, share near 0, maximum, mean root."""
    features_BF = features_BF.astype(np.float64) / scale
    absolute_BF = np.abs(features_BF)
    return np.stack(
        [
            features_BF.mean(axis=1),
            features_BF.std(axis=1),
            (absolute_BF < 0.01).mean(axis=1),
            np.log(absolute_BF.max(axis=1) + 0.01),
            np.sqrt(absolute_BF).mean(axis=1),
        ],
        axis=1,
    )


def feature_distance(features_BF: Array, scale: float, mean_S: Array, precision_SS: Array) -> Array:
    """Squared Mahalanobis distance of `feature_statistics` from their mean, (B,)."""
    deviation_BS = feature_statistics(features_BF, scale) - mean_S
    distance_B: Array = np.einsum("bs,st,bt->b", deviation_BS, precision_SS, deviation_BS)
    return distance_B


def _thresholds_to_json(thresholds: Mapping[float, float | None]) -> dict[str, float | None]:
    return {str(rate): threshold for rate, threshold in thresholds.items()}


def _thresholds_from_json(entry: Mapping[str, Any]) -> dict[float, float | None]:
    return {rate: optional_float(entry[str(rate)]) for rate in FALSE_ALARM_RATES}


def novelty_from_parts(fields: Mapping[str, Any], arrays: Mapping[str, Array]) -> Novelty | FeatureNovelty:
    """Build the novelty model of either kind from its card entry and arrays.

    Raises:
        ValueError: an entry is missing or invalid.
    """
    kind = FeatureNovelty if fields.get("kind") == "features" else Novelty
    return kind.from_parts(fields, arrays)
