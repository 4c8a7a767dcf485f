"""Fit the novelty score of any network to its features of calibration images."""

import numpy as np

from model.novelty import FALSE_ALARM_RATES, FeatureNovelty, combine_scores, feature_distance, feature_statistics
from model.uncertainty import entropy
from training.calibrate import conformal_quantile

Array = np.ndarray

LEAST_IMAGES = 100
_FOLDS = 10
_SHRINKAGE = 1e-6  # of the covariance, towards a multiple of the identity


def fit_feature_novelty(features_NF: Array, probs_NC: Array, seed: int) -> FeatureNovelty | None:
    """Fit to all images; scales and thresholds come from scores of images that the fit has not seen (ten folds).

    Args:
        features_NF: features before the last layer, in eval mode.
        probs_NC: class probabilities in eval mode.
        seed: of the folds.

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
    thresholds = {rate: conformal_quantile(scores_N, 1 - rate) for rate in FALSE_ALARM_RATES}
    return FeatureNovelty(*_gaussian(features_NF), scales, thresholds)


def _gaussian(features_NF: Array) -> tuple[float, Array, Array]:
    """Typical absolute value of a feature, and mean and precision of the statistics."""
    scale = float(np.abs(features_NF).mean())
    statistics_NS = feature_statistics(features_NF, scale)
    covariance_SS = np.cov(statistics_NS.T)
    covariance_SS += _SHRINKAGE * max(np.trace(covariance_SS), _SHRINKAGE) * np.eye(len(covariance_SS))
    return scale, statistics_NS.mean(axis=0), np.linalg.inv(covariance_SS)
