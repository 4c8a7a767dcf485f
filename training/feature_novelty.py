"""Fit the novelty score of any network to its features of calibration images."""

from collections.abc import Callable

import numpy as np

from model.graph import Graph
from model.novelty import FALSE_ALARM_RATES, FeatureNovelty, combine_scores, feature_distance, feature_statistics
from model.poses import PoseView
from model.uncertainty import entropy
from training.calibrate import conformal_quantile
from training.data import Images

Array = np.ndarray

LEAST_IMAGES = 100
_FOLDS = 10
_SHRINKAGE = 1e-6  # of the covariance, towards a multiple of the identity


def fit_feature_novelty(
    features_NF: Array,
    probs_NC: Array,
    seed: int,
    *,
    poses: Callable[[Array], tuple[PoseView, Array]] | None = None,
) -> FeatureNovelty | None:
    """Fit to all images; scales and thresholds come from scores of images that the fit has not seen (ten folds).

    Args:
        features_NF: features before the last layer, in eval mode.
        probs_NC: class probabilities in eval mode.
        seed: of the folds.
        poses: fits the view for poses, given the scores of the images by the view "features"; returns also its scores
            (N,) of the images, by a fit that has not seen them.

    Returns:
        None if there are no features, fewer than 100 images, or features that don't differ between images.
    """
    count = len(features_NF)
    if count < LEAST_IMAGES or not features_NF.shape[1] or not np.abs(features_NF).max() > 0:
        return None
    fold_N = np.random.default_rng(seed).permutation(count) % _FOLDS
    distance_N = np.empty(count)
    for fold in range(_FOLDS):
        is_left_out = fold_N == fold
        distance_N[is_left_out] = feature_distance(features_NF[is_left_out], *_gaussian(features_NF[~is_left_out]))
    scales = {}
    for name, value_N in (("distance", distance_N), ("entropy", entropy(probs_NC.astype(np.float64)))):
        median, percentile_95 = np.quantile(value_N, [0.5, 0.95])
        if not percentile_95 > median:
            return None
        scales[name] = float(median), float(percentile_95)
    scores_N = combine_scores(distance_N, probs_NC, scales)
    view = None
    if poses is not None:
        view, pose_scores_N = poses(scores_N)
        scores_N = np.maximum(scores_N, pose_scores_N)
    thresholds = {rate: conformal_quantile(scores_N, 1 - rate) for rate in FALSE_ALARM_RATES}
    return FeatureNovelty(*_gaussian(features_NF), scales, thresholds, view)


def fit_graph_novelty(
    graph: Graph,
    train: Images,
    calibration_images: Images,
    *,
    poses: Callable[[Images, Images, Array], PoseView],
) -> FeatureNovelty | None:
    """Fit the novelty score of a compiled network that was trained on images of ours.

    Args:
        graph: the network.
        train: the images to which it was fitted.
        calibration_images: images held out of training.
        poses: fits the view for poses to training images, calibration images, and their scores by the other view.

    Returns:
        None where `fit_feature_novelty` returns it.
    """
    inputs_N = calibration_images.inputs_B.numpy()
    probs_NC, features_NF = graph.predict_with_features(inputs_N)

    def fit_view(scores_N: Array) -> tuple[PoseView, Array]:
        view = poses(train, calibration_images, scores_N)
        return view, view.score(inputs_N)

    return fit_feature_novelty(features_NF, probs_NC, seed=0, poses=fit_view)


def _gaussian(features_NF: Array) -> tuple[float, Array, Array]:
    """Typical absolute value of a feature, and mean and precision of the statistics."""
    scale = float(np.abs(features_NF).mean())
    statistics_NS = feature_statistics(features_NF, scale)
    covariance_SS = np.cov(statistics_NS.T)
    covariance_SS += _SHRINKAGE * max(np.trace(covariance_SS), _SHRINKAGE) * np.eye(len(covariance_SS))
    return scale, statistics_NS.mean(axis=0), np.linalg.inv(covariance_SS)
