"""Fit the novelty score of any network to its features of calibration images."""

import numpy as np

from model.novelty import FALSE_ALARM_RATES, FeatureNovelty, feature_distance, feature_statistics
from training.calibrate import conformal_quantile

Array = np.ndarray

LEAST_IMAGES = 100
_SHRINKAGE = 1e-6  # of the covariance, towards a multiple of the identity


def fit_feature_novelty(features_NF: Array, probs_NC: Array, seed: int) -> FeatureNovelty | None:
    """Fit to one half of the images, and find the thresholds on the other, which keeps the false-alarm rates.

    Args:
        features_NF: features before the last layer, in eval mode.
        probs_NC: class probabilities in eval mode.
        seed: of the halves.

    Returns:
        None if there are no features, fewer than 100 images, or features that don't differ between images.
    """
    count = len(features_NF)
    if count < LEAST_IMAGES or not features_NF.shape[1] or not np.abs(features_NF).max() > 0:
        return None
    order = np.random.default_rng(seed).permutation(count)
    fitting, holding = order[: count // 2], order[count // 2 :]
    scale = float(np.abs(features_NF[fitting]).mean())
    statistics_NS = feature_statistics(features_NF[fitting], scale)
    covariance_SS = np.cov(statistics_NS.T)
    covariance_SS += _SHRINKAGE * np.trace(covariance_SS) * np.eye(len(covariance_SS))
    mean_S, precision_SS = statistics_NS.mean(axis=0), np.linalg.inv(covariance_SS)
    distance_N = feature_distance(features_NF[holding], scale, mean_S, precision_SS)
    scales = {}
    for name, value_N in (("distance", distance_N), ("confidence", -probs_NC[holding].max(axis=1))):
        median, percentile_95 = np.quantile(value_N, [0.5, 0.95])
        if not percentile_95 > median:
            return None
        scales[name] = float(median), float(percentile_95)
    unfinished = FeatureNovelty(scale, mean_S, precision_SS, scales, dict.fromkeys(FALSE_ALARM_RATES))
    scores_N = unfinished.score(features_NF[holding], probs_NC[holding])
    thresholds = {rate: conformal_quantile(scores_N, 1 - rate) for rate in FALSE_ALARM_RATES}
    return FeatureNovelty(scale, mean_S, precision_SS, scales, thresholds)
