"""What S stochastic passes say together: mean, spread, and the parts of the entropy."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.dropout import BLOCK, Masks, check_masks

Array = np.ndarray

_ROW_SUM_TOLERANCE = 1e-3
_NUMBERS_AT_ONCE = 2**15  # float64, which fits into a cache; larger arrays the system maps anew each time
_SMALLEST = 1e-30  # added to probabilities before logarithms are taken
_SMALLEST_DIFFERENCE = 1e-16  # from 1, that float64 tells
# The normal distribution in 19 steps up to 4.5 standard deviations: what one mask in 300,000 exceeds is left out.
_Z = np.linspace(-4.5, 4.5, 19)
_DENSITY_Z = np.exp(-(_Z**2) / 2) / np.exp(-(_Z**2) / 2).sum()
_DENSITY_AND_SLOPE_Z2 = np.stack([_DENSITY_Z, _DENSITY_Z * _Z / np.sqrt(_DENSITY_Z @ _Z**2)], axis=1)


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Summary of S passes over B images and C classes; float64, entropies in nats.

    Attributes:
        mean: (B, C), average probability over the passes.
        variance: (B, C), population variance over the passes (divided by S).
        predictive_entropy: (B,), entropy of the mean: the total.
        expected_entropy: (B,), mean entropy of a pass: the aleatoric part.
        mutual_information: (B,), between prediction and weights: the epistemic part, corrected for finite S.
        standard_error: (B, C), how far `mean` is from that of infinitely many passes, in standard deviations.
    """

    mean: Tensor
    variance: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    standard_error: Tensor


def summarize(probs_SBC: Tensor | np.ndarray, *, masks: Masks = "stratified") -> Uncertainty:
    """Average S passes and split their predictive entropy, in nats.

    H[mean] = E[H] + I, total = aleatoric + epistemic (Houlsby et al. 2011, arXiv:1112.5745, equation 2; Gal 2016,
    "Uncertainty in Deep Learning", section 3.3.1). Of finitely many passes H[mean] is low by sum(v / 2 mean) to first
    order, v the variance of the mean (Miller 1955; Paninski 2003, doi:10.1162/089976603321780272): the mutual
    information has it added, so that it is H[mean] - E[H] plus a little. v is estimated from means of blocks of ten
    stratified passes, or from the passes themselves if they are independent (or fewer than two blocks).

    The standard error is sqrt(v) or, if that is more, what the log-odds of a class tell: most classes are improbable
    but under a few masks, and passes that don't happen to contain those show no spread. Over the masks the log-odds are
    nearly normal. Their spread, measured in the tail towards one half, gives the variance V of a probability, and which
    part L of it is linear in the log-odds. Blocks show how much less the log-odds' mean varies than that of independent
    passes, r (for which r is 1). Then V - L + r L, over S, is the squared standard error.

    Args:
        probs_SBC: softmax output of each pass, tensor or array; every row sums to 1.
        masks: the design of the passes, see `keep_masks`; passes in train mode are "independent".

    Raises:
        ValueError: not of three axes, fewer than two passes, a row that is no probability distribution, or an unknown
            design.
    """
    check_masks(masks)
    probs_BCS = _as_rows(probs_SBC)
    images, classes, passes = probs_BCS.shape
    at_once = max(_NUMBERS_AT_ONCE // max(classes * passes, 1), 1)
    parts = [
        _summarize(np.ascontiguousarray(probs_BCS[first : first + at_once], dtype=np.float64), masks)
        for first in range(0, max(images, 1), at_once)
    ]
    whole = parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Uncertainty(**{name: torch.from_numpy(array) for name, array in whole.items()})


def entropy(probs_C: Tensor) -> Tensor:
    """Shannon entropy over the last axis, in nats; 0 log 0 is 0.

    Args:
        probs_C: probabilities of shape (..., C).

    Returns:
        A tensor of shape (...).
    """
    terms_C: Tensor = torch.special.entr(probs_C)
    return terms_C.sum(dim=-1)


def _as_rows(probs_SBC: Tensor | np.ndarray) -> Array:
    array_SBC = probs_SBC.detach().cpu().numpy() if isinstance(probs_SBC, Tensor) else np.asarray(probs_SBC)
    if array_SBC.ndim != 3:
        raise ValueError(f"probs_SBC must have axes (samples, images, classes), got shape {array_SBC.shape}")
    if len(array_SBC) < 2:
        raise ValueError(f"at least 2 passes, got {len(array_SBC)}: one pass has no spread")
    return array_SBC.transpose(1, 2, 0)


def _summarize(probs_BCS: Array, masks: Masks) -> dict[str, Array]:
    """Summarize images whose passes lie side by side: written for few calls of NumPy, which cost more than the work."""
    _, classes, passes = probs_BCS.shape
    block = BLOCK if masks == "stratified" and passes >= 2 * BLOCK else 1
    sums_B1S = probs_BCS.sum(axis=1, keepdims=True)
    if not (probs_BCS.min(initial=0) >= 0 and np.abs(sums_B1S - 1).max(initial=0) <= _ROW_SUM_TOLERANCE):
        raise ValueError("every row of probs_SBC must be a distribution: no negative or NaN entry, and a sum of 1")
    logs_BCS = np.log(probs_BCS + _SMALLEST)
    # Others, not 1 - p: a float32 close to 1 knows little about its distance from it.
    odds_BCS = logs_BCS - np.log(np.maximum(sums_B1S - probs_BCS, _SMALLEST_DIFFERENCE))
    both_BDS = np.concatenate([probs_BCS, odds_BCS], axis=1)  # D = 2 C: probabilities, then log-odds
    means_BD = both_BDS.sum(axis=-1) / passes
    deviation_BDS = both_BDS - means_BD[..., None]
    variance_BD = np.vecdot(deviation_BDS, deviation_BDS) / passes
    of_mean_BD = variance_BD / (passes - 1) if block == 1 else _variance_of_mean(deviation_BDS, block)
    mean_BC, of_mean_BC = means_BD[:, :classes], of_mean_BD[:, :classes]
    by_odds_BC = _variance_by_odds(
        means_BD[:, classes:],
        deviation_BDS[:, classes:] * np.copysign(1, 0.5 - mean_BC)[..., None],
        of_mean_BD[:, classes:] * (passes - 1) / np.maximum(variance_BD[:, classes:], _SMALLEST),
    )
    predictive_B = -np.vecdot(mean_BC, np.log(mean_BC + _SMALLEST))
    expected_B = -np.vecdot(probs_BCS, logs_BCS).sum(axis=-1) / passes
    excess_B = (of_mean_BC / (mean_BC + _SMALLEST)).sum(axis=-1) / 2
    return {
        "mean": mean_BC,
        "variance": variance_BD[:, :classes],
        "predictive_entropy": predictive_B,
        "expected_entropy": expected_B,
        # The difference is never negative, since entropy is concave (Jensen), but for rounding: -1e-16.
        "mutual_information": np.maximum(predictive_B - expected_B, 0) + excess_B,
        "standard_error": np.sqrt(np.maximum(of_mean_BC, by_odds_BC)),
    }


def _variance_of_mean(deviation_BDS: Array, block: int) -> Array:
    """Variance of the mean over passes, from the means of whole blocks of them."""
    blocks = deviation_BDS.shape[-1] // block
    sums_BDK = np.add.reduceat(deviation_BDS[..., : blocks * block], np.arange(0, blocks * block, block), axis=-1)
    variance_BD: Array = np.vecdot(sums_BDK, sums_BDK) / (block**2 * blocks * (blocks - 1))
    return variance_BD


def _variance_by_odds(center_BC: Array, towards_half_BCS: Array, ratio_BC: Array) -> Array:
    """Variance of the mean probability, taking the log-odds to be normal over the passes.

    Args:
        center_BC: mean log-odds.
        towards_half_BCS: deviations from it, positive where they lead to a probability of one half.
        ratio_BC: variance of the mean log-odds over that of independent passes.
    """
    passes = towards_half_BCS.shape[-1]
    upper_BCS = np.maximum(towards_half_BCS, 0)
    # The standard deviation whose normal distribution has this half's third moment, where the tail weighs more.
    spread_BC = np.cbrt(np.vecdot(upper_BCS, upper_BCS * upper_BCS) * (math.sqrt(math.pi / 2) / passes))
    probs_BCZ = 1 / (1 + np.exp(-(center_BC[..., None] + spread_BC[..., None] * _Z)))
    mean_and_slope_BC2 = probs_BCZ @ _DENSITY_AND_SLOPE_Z2
    variance_BC = np.square(probs_BCZ - mean_and_slope_BC2[..., :1]) @ _DENSITY_AND_SLOPE_Z2[:, 0]
    variance_BC -= np.maximum(1 - ratio_BC, 0) * np.square(mean_and_slope_BC2[..., 1])
    of_mean_BC: Array = np.maximum(variance_BC, 0) / passes
    return of_mean_BC
