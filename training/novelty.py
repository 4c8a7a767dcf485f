"""Fit to training images what tells clothing from what is none."""

import numpy as np
from scipy import ndimage
from torch import nn

from model.chain import Chain
from model.novelty import FALSE_ALARM_RATES, FEATURES, ClassGaussians, Novelty, features
from training.calibrate import conformal_quantile
from training.data import Images

Array = np.ndarray

_SHRINKAGE = 1e-4  # towards a covariance of equal variances
_SEED = 0
_IMAGES_ALIKE = 500
# How much smaller, smoother (standard deviation of a normal distribution, in pixels) and dimmer a copy may be.
_SCALES, _BLURS, _GAINS = (0.95, 1.0), (0.0, 0.6), (0.8, 1.0)


def fit_novelty(network: nn.Sequential, train: Images, images: Images) -> Novelty:
    """Fit the distributions of features to training images, and their scales and thresholds to others.

    Fashion-MNIST's pictures were all made in one way. The view "image" sees a varied copy of each too, so that clothes
    which are resampled or exposed otherwise are nothing novel.

    Args:
        network: linear layers, ReLU and dropout.
        train: labelled images that it was fitted to.
        images: others.
    """
    chain, rng = Chain(network), np.random.default_rng(_SEED)
    fitted, others = (
        [_features(chain, inputs_B) for inputs_B in (plain_B, varied(plain_B, rng))]
        for plain_B in (train.inputs_B.numpy(), images.inputs_B.numpy())
    )
    gaussians = {}
    for name in FEATURES:
        copies = 2 if name == "image" else 1
        gaussians[name] = _class_gaussians(
            np.concatenate([views[name] for views in fitted[:copies]]),
            np.tile(train.labels_B.numpy(), copies),
            np.concatenate([views[name] for views in others[:copies]]),
        )
    scores_B = np.max([gaussians[name].score(others[0][name]) for name in FEATURES], axis=0)
    return Novelty(gaussians, {rate: conformal_quantile(scores_B, 1 - rate) for rate in FALSE_ALARM_RATES})


def varied(images_B: Array, rng: np.random.Generator) -> Array:
    """Copy images (B, 1, H, W), some a little smaller, smoother, or dimmer."""
    copies_B = np.empty_like(images_B)
    for start in range(0, len(images_B), _IMAGES_ALIKE):
        alike = slice(start, start + _IMAGES_ALIKE)
        scale, blur, gain = (rng.uniform(*limits) for limits in (_SCALES, _BLURS, _GAINS))
        step = 1 / scale
        middle = (np.array(images_B.shape[2:]) - 1) / 2
        smaller_B = ndimage.affine_transform(
            images_B[alike], [1, 1, step, step], offset=[0, 0, *(middle * (1 - step))], order=1
        )
        copies_B[alike] = gain * ndimage.gaussian_filter(smaller_B, blur, axes=(2, 3), mode="constant")
    return copies_B


def _features(chain: Chain, images_B: Array) -> dict[str, Array]:
    parts = [features(chain, part_B) for part_B in np.array_split(images_B, -(-len(images_B) // 5_000))]
    return {name: np.concatenate([part[name] for part in parts]) for name in FEATURES}


def _class_gaussians(features_BF: Array, labels_B: Array, others_BF: Array) -> ClassGaussians:
    classes = [features_BF[labels_B == label] for label in np.unique(labels_B)]
    means_KF = np.stack([members_BF.mean(axis=0, dtype=np.float64) for members_BF in classes])
    off_BF = features_BF - means_KF[labels_B]
    covariance_FF = off_BF.T @ off_BF / len(off_BF)
    equal = np.trace(covariance_FF) / len(covariance_FF)
    covariance_FF += _SHRINKAGE * equal * np.eye(len(covariance_FF))
    whiten_FF = np.linalg.inv(np.linalg.cholesky(covariance_FF)).T
    unscaled = ClassGaussians(whiten_FF.astype(np.float32), (means_KF @ whiten_FF).astype(np.float32), 0, 1)
    typical, far = np.quantile(unscaled.distance(others_BF), [0.5, 0.99])
    return ClassGaussians(unscaled.whiten_FF, unscaled.means_KF, float(typical), float(far))
