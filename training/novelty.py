"""Fit the model of the novelty score."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from torch import nn

from model.chain import Array, Stages
from model.network.chain import LiveChain
from model.novelty import FALSE_ALARM_RATES, FEATURES, ClassGaussians, Novelty, extract_features
from model.poses import PoseView
from training.calibrate import conformal_quantile
from training.data import Images

_SHRINKAGE = 1e-4  # towards a multiple of the identity
_SEED = 0
_IMAGES_PER_VARIATION = 500
# Factor of the size, standard deviation of a Gaussian blur in pixels, and factor of the brightness of a copy.
_SCALES, _BLURS, _GAINS = (0.95, 1.0), (0.0, 0.6), (0.8, 1.0)


def fit_novelty(
    network: nn.Sequential,
    train: Images,
    calibration_images: Images,
    *,
    poses: Callable[[Images, Images, Array], PoseView] | None = None,
) -> Novelty:
    """Fit the distributions of features to training images, and scales and thresholds to calibration images.

    Fashion-MNIST's images were all produced in one way. The view "image" is therefore also fitted to an augmented copy
    of each, so that other resampling or exposure does not count as novel.

    Args:
        network: linear layers, ReLU and dropout.
        train: labelled images to which the network was fitted.
        calibration_images: images held out of training.
        poses: fits the view for poses to training images, calibration images, and their scores by the other views.
    """
    chain, rng = LiveChain(network), np.random.default_rng(_SEED)
    train_views, calibration_views = (
        [_extract_in_chunks(chain, inputs_B) for inputs_B in (plain_B, augmented_copies(plain_B, rng))]
        for plain_B in (train.inputs_B.numpy(), calibration_images.inputs_B.numpy())
    )
    gaussians = {}
    for name in FEATURES:
        copies = 2 if name == "image" else 1
        gaussians[name] = _class_gaussians(
            np.concatenate([views[name] for views in train_views[:copies]]),
            np.tile(train.labels_B.numpy(), copies),
            np.concatenate([views[name] for views in calibration_views[:copies]]),
        )
    scores_B = np.max([gaussians[name].score(calibration_views[0][name]) for name in FEATURES], axis=0)
    view = None
    if poses is not None:
        view = poses(train, calibration_images, scores_B)
        scores_B = np.maximum(scores_B, view.score(calibration_images.inputs_B.numpy()))
    return Novelty(gaussians, {rate: conformal_quantile(scores_B, 1 - rate) for rate in FALSE_ALARM_RATES}, view)


def augmented_copies(images_B: Array, rng: np.random.Generator) -> Array:
    """Copy images (B, 1, H, W), some slightly smaller, smoother or darker."""
    copies_B = np.empty_like(images_B)
    for start in range(0, len(images_B), _IMAGES_PER_VARIATION):
        group = slice(start, start + _IMAGES_PER_VARIATION)
        scale, blur, gain = (rng.uniform(*limits) for limits in (_SCALES, _BLURS, _GAINS))
        step = 1 / scale
        middle = (np.array(images_B.shape[2:]) - 1) / 2
        smaller_B = ndimage.affine_transform(
            images_B[group], [1, 1, step, step], offset=[0, 0, *(middle * (1 - step))], order=1
        )
        copies_B[group] = gain * ndimage.gaussian_filter(smaller_B, blur, axes=(2, 3), mode="constant")
    return copies_B


def _extract_in_chunks(chain: Stages, images_B: Array) -> dict[str, Array]:
    parts = [extract_features(chain, part_B) for part_B in np.array_split(images_B, -(-len(images_B) // 5_000))]
    return {name: np.concatenate([part[name] for part in parts]) for name in FEATURES}


def _class_gaussians(features_BF: Array, labels_B: Array, calibration_BF: Array) -> ClassGaussians:
    classes = [features_BF[labels_B == label] for label in np.unique(labels_B)]
    means_KF = np.stack([members_BF.mean(axis=0, dtype=np.float64) for members_BF in classes])
    deviation_BF = features_BF - means_KF[labels_B]
    covariance_FF = deviation_BF.T @ deviation_BF / len(deviation_BF)
    mean_variance = np.trace(covariance_FF) / len(covariance_FF)
    covariance_FF += _SHRINKAGE * mean_variance * np.eye(len(covariance_FF))
    whiten_FF = np.linalg.inv(np.linalg.cholesky(covariance_FF)).T
    unscaled = ClassGaussians(whiten_FF.astype(np.float32), (means_KF @ whiten_FF).astype(np.float32), 0, 1)
    median, percentile_99 = np.quantile(unscaled.distance(calibration_BF), [0.5, 0.99])
    return ClassGaussians(unscaled.whiten_FF, unscaled.means_KF, float(median), float(percentile_99))
