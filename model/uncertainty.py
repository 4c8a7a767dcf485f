"""Summary of S stochastic passes: mean, variance, entropies, mutual information and standard error."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import entr

from model.kinds import ArrayOrTensor, as_array, like
from model.masks import BLOCK, Masks, check_masks

Array = np.ndarray

_ROW_SUM_TOLERANCE = 1e-3
_MAX_CHUNK_SIZE = 2**15  # float64 numbers that fit into a cache; the system maps larger arrays again for each call
_EPSILON = 1e-30  # added to probabilities before logarithms are taken
_MIN_COMPLEMENT = 1e-16  # of 1 - p, at the resolution of float64
# The standard normal distribution at 19 points up to 4.5 standard deviations, which one mask in 150,000 exceeds.
_Z = np.linspace(-4.5, 4.5, 19)
_DENSITY_Z = np.exp(-(_Z**2) / 2) / np.exp(-(_Z**2) / 2).sum()
_DENSITY_AND_SLOPE_Z2 = np.stack([_DENSITY_Z, _DENSITY_Z * _Z / np.sqrt(_DENSITY_Z @ _Z**2)], axis=1)


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Summary of S passes over B images and C classes; float64, entropies in nats; of the kind of the passes.

    Attributes:
        mean: (B, C), average probability over the passes.
        variance: (B, C), population variance over the passes (divided by S).
        predictive_entropy: (B,), entropy of the mean: the total.
        expected_entropy: (B,), mean of the entropies of the passes: the aleatoric part.
        mutual_information: (B,), between prediction and weights: the epistemic part, corrected for finite S.
        standard_error: (B, C), standard deviation of `mean` around the mean of infinitely many passes.
    """

    mean: Any
    variance: Any
    predictive_entropy: Any
    expected_entropy: Any
    mutual_information: Any
    standard_error: Any


def summarize(probs_SBC: ArrayOrTensor, *, masks: Masks = "stratified") -> Uncertainty:
    """Average S passes and split their predictive entropy, in nats.

    H[mean] = E[H] + I, total = aleatoric + epistemic (Houlsby et al. 2011, arXiv:1112.5745, equation 2; Gal 2016,
    "Uncertainty in Deep Learning", section 3.3.1). For finitely many passes, H[mean] is too low by sum(v / (2 mean)) to
    first order, where v is the variance of the mean (Miller 1955; Paninski 2003, doi:10.1162/089976603321780272). The
    mutual information is corrected by this term: I = H[mean] - E[H] + sum(v / (2 mean)). v is estimated from the means
    of blocks of ten stratified passes, or from single passes if they are independent (or fewer than two blocks).

    The standard error is the larger of sqrt(v) and an estimate from the log-odds of a class. The second is needed
    because a class may be probable under few masks only: passes without these masks show no variance. The log-odds are
    nearly normal over the masks. Their scale, estimated in the tail towards a probability of one half, gives the
    variance V of a probability and the part L of V that is linear in the log-odds. The blocks give r, the variance of
    the mean log-odds relative to that of independent passes. The squared standard error is (V - L + r L) / S, with r at
    most 1. docs/method.md derives the formulas.

    Args:
        probs_SBC: softmax output of each pass, a tensor or an array of shape (S, B, C); every row sums to 1.
        masks: the design of the passes, see `keep_masks`; passes in train mode are "independent".

    Raises:
        ValueError: the input does not have three axes, has fewer than two passes or a row that is not a probability
            distribution, or the design is unknown.
    """
    check_masks(masks)
    probs_BCS = _validated(probs_SBC)
    images, classes, passes = probs_BCS.shape
    chunk = max(_MAX_CHUNK_SIZE // max(classes * passes, 1), 1)
    parts = [
        _summarize(np.ascontiguousarray(probs_BCS[first : first + chunk], dtype=np.float64), masks)
        for first in range(0, max(images, 1), chunk)
    ]
    merged = (
        parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )
    return Uncertainty(**{name: like(probs_SBC, array) for name, array in merged.items()})


def entropy(probs_C: ArrayOrTensor) -> Any:
    """Compute the Shannon entropy over the last axis, in nats; 0 log 0 is 0.

    Args:
        probs_C: probabilities of shape (..., C), a tensor or an array.

    Returns:
        A tensor or an array of shape (...).
    """
    if isinstance(probs_C, np.ndarray):
        return entr(probs_C).sum(axis=-1)
    import torch  # noqa: PLC0415 - whoever has a tensor has torch

    return torch.special.entr(probs_C).sum(dim=-1)


def _validated(probs_SBC: ArrayOrTensor) -> Array:
    array_SBC = as_array(probs_SBC)
    if array_SBC.ndim != 3:
        raise ValueError(f"probs_SBC must have axes (samples, images, classes), got shape {array_SBC.shape}")
    if len(array_SBC) < 2:
        raise ValueError(f"at least 2 passes, got {len(array_SBC)}: one pass has no spread")
    return array_SBC.transpose(1, 2, 0)


def _summarize(probs_BCS: Array, masks: Masks) -> dict[str, Array]:
    """Summarize images with the passes on the last axis, in few NumPy calls, whose overhead dominates."""
    _, classes, passes = probs_BCS.shape
    block = BLOCK if masks == "stratified" and passes >= 2 * BLOCK else 1
    sums_B1S = probs_BCS.sum(axis=1, keepdims=True)
    if not (probs_BCS.min(initial=0) >= 0 and np.abs(sums_B1S - 1).max(initial=0) <= _ROW_SUM_TOLERANCE):
        raise ValueError("every row of probs_SBC must be a distribution: no negative or NaN entry, and a sum of 1")
    log_probs_BCS = np.log(probs_BCS + _EPSILON)
    # The sum of the other probabilities instead of 1 - p: near 1, float32 resolves 1 - p poorly.
    log_odds_BCS = log_probs_BCS - np.log(np.maximum(sums_B1S - probs_BCS, _MIN_COMPLEMENT))
    stacked_BDS = np.concatenate([probs_BCS, log_odds_BCS], axis=1)  # D = 2 C: probabilities, then log-odds
    means_BD = stacked_BDS.sum(axis=-1) / passes
    deviation_BDS = stacked_BDS - means_BD[..., None]
    variance_BD = np.vecdot(deviation_BDS, deviation_BDS) / passes
    variance_of_mean_BD = variance_BD / (passes - 1) if block == 1 else _variance_of_mean(deviation_BDS, block)
    mean_BC, variance_of_mean_BC = means_BD[:, :classes], variance_of_mean_BD[:, :classes]
    log_odds_variance_BC = _variance_from_log_odds(
        means_BD[:, classes:],
        deviation_BDS[:, classes:] * np.copysign(1, 0.5 - mean_BC)[..., None],
        variance_of_mean_BD[:, classes:] * (passes - 1) / np.maximum(variance_BD[:, classes:], _EPSILON),
    )
    predictive_B = -np.vecdot(mean_BC, np.log(mean_BC + _EPSILON))
    expected_B = -np.vecdot(probs_BCS, log_probs_BCS).sum(axis=-1) / passes
    entropy_bias_B = (variance_of_mean_BC / (mean_BC + _EPSILON)).sum(axis=-1) / 2
    return {
        "mean": mean_BC,
        "variance": variance_BD[:, :classes],
        "predictive_entropy": predictive_B,
        "expected_entropy": expected_B,
        # Entropy is concave, so the difference is negative only by rounding (-1e-16).
        "mutual_information": np.maximum(predictive_B - expected_B, 0) + entropy_bias_B,
        "standard_error": np.sqrt(np.maximum(variance_of_mean_BC, log_odds_variance_BC)),
    }


def _variance_of_mean(deviation_BDS: Array, block: int) -> Array:
    """Estimate the variance of the mean over passes from the means of whole blocks of passes."""
    blocks = deviation_BDS.shape[-1] // block
    sums_BDK = np.add.reduceat(deviation_BDS[..., : blocks * block], np.arange(0, blocks * block, block), axis=-1)
    variance_BD: Array = np.vecdot(sums_BDK, sums_BDK) / (block**2 * blocks * (blocks - 1))
    return variance_BD


def _variance_from_log_odds(mean_log_odds_BC: Array, towards_half_BCS: Array, variance_ratio_BC: Array) -> Array:
    """Estimate the variance of the mean probability, assuming that the log-odds are normal over the passes.

    Args:
        mean_log_odds_BC: mean log-odds.
        towards_half_BCS: deviations from it, positive towards a probability of one half.
        variance_ratio_BC: variance of the mean log-odds relative to that of independent passes.
    """
    passes = towards_half_BCS.shape[-1]
    upper_BCS = np.maximum(towards_half_BCS, 0)
    # The standard deviation of the normal distribution with the third moment of this half, which weighs the tail more.
    scale_BC = np.cbrt(np.vecdot(upper_BCS, upper_BCS * upper_BCS) * (math.sqrt(math.pi / 2) / passes))
    probs_BCZ = 1 / (1 + np.exp(-(mean_log_odds_BC[..., None] + scale_BC[..., None] * _Z)))
    mean_and_slope_BC2 = probs_BCZ @ _DENSITY_AND_SLOPE_Z2
    variance_BC = np.square(probs_BCZ - mean_and_slope_BC2[..., :1]) @ _DENSITY_AND_SLOPE_Z2[:, 0]
    variance_BC -= np.maximum(1 - variance_ratio_BC, 0) * np.square(mean_and_slope_BC2[..., 1])
    variance_of_mean_BC: Array = np.maximum(variance_BC, 0) / passes
    return variance_of_mean_BC
