"""Summary of S stochastic passes: mean, variance, entropies, mutual information and standard error."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.special import entr

from model.kinds import ArrayOrTensor, as_array, is_tensor, like
from model.masks import BLOCK, Masks, check_masks

Array = np.ndarray

_ROW_SUM_TOLERANCE = 1e-3
_MAX_CHUNK_SIZE = 2**15  # float64 numbers that fit into a cache; the system maps larger arrays again for each call
# NumPy takes constants faster as arrays without axes than as numbers of Python.
_ZERO, _HALF, _ONE = np.array(0.0), np.array(0.5), np.array(1.0)
_EPSILON = np.array(1e-30)  # added to probabilities before logarithms are taken
_MIN_COMPLEMENT = np.array(1e-16)  # of 1 - p, at the resolution of float64
_LEAST_PASSES = 3  # of a member, to estimate the spread of its passes
_ONES_BLOCK = np.ones(BLOCK)
# The standard normal distribution at 19 points up to 4.5 standard deviations, which one mask in 150,000 exceeds.
_Z = np.linspace(-4.5, 4.5, 19)
_ROOT_DENSITY_Z = np.sqrt(np.exp(-(_Z**2) / 2) / np.exp(-(_Z**2) / 2).sum())
# Orthonormal functions of Z times the root of the density: a constant, a linear one, and the rest in any order.
_BASIS_ZY = np.linalg.qr(np.stack([_ROOT_DENSITY_Z, _Z * _ROOT_DENSITY_Z], axis=1), mode="complete").Q


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


def summarize(probs_SBC: ArrayOrTensor, *, masks: Masks = "stratified", members: int = 1) -> Uncertainty:
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

    Pass s of an ensemble is one of member s mod M. All members have the same weight, and the standard error is that of
    these members: v, and the estimate from the log-odds, are sums over the members, divided by M^2. With fewer than
    three passes of each member, the passes are summarized as independent ones, whose spread contains that of the
    members.

    Args:
        probs_SBC: softmax output of each pass, a tensor or an array of shape (S, B, C); every row sums to 1.
        masks: the design of the passes, see `keep_masks`; passes in train mode are "independent".
        members: number M of the networks of an ensemble.

    Raises:
        ValueError: the input does not have three axes, has fewer than two passes or a row that is not a probability
            distribution, the design is unknown, or there are no members.
    """
    check_masks(masks)
    if members < 1:
        raise ValueError(f"members must be at least 1, got {members}")
    probs_BCS = _validated(probs_SBC)
    images, classes, passes = probs_BCS.shape
    if passes < _LEAST_PASSES * members:
        masks, members = "independent", 1
    chunk = max(_MAX_CHUNK_SIZE // max(classes * passes, 1), 1)
    parts = [_summarize(probs_BCS[first : first + chunk], masks, members) for first in range(0, max(images, 1), chunk)]
    merged = parts[0]
    if len(parts) > 1:
        merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if is_tensor(probs_SBC):
        merged = {name: like(probs_SBC, array) for name, array in merged.items()}
    return Uncertainty(**merged)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Constants:
    """What depends on the number of passes S and their design only.

    Attributes:
        blocks: number K of blocks that are the independent units of sampling; 0 if these are the passes.
        passes: S.
        of_mean: factor from the sum of the squares of the sums of blocks, or from the variance if there are no blocks,
            to the variance of the mean.
        independent: variance of the mean relative to the variance, for independent passes.
        ones_S: sums over the passes in a product.
        points_2Z: from mean log-odds, and the cube root of the sum of cubes that estimates their standard deviation, to
            half of the log-odds at Z.
        parts_ZY: from tanh of these to parts, the squares of which sum to the variance of the mean probability. The
            first part is linear in the log-odds, and divided by the root of `independent`.
    """

    blocks: int
    passes: Array
    of_mean: Array
    independent: Array
    ones_S: Array
    points_2Z: Array
    parts_ZY: Array


@lru_cache
def _constants(passes: int, masks: Masks) -> _Constants:
    blocks = passes // BLOCK if masks == "stratified" and passes >= 2 * BLOCK else 0
    scale = math.cbrt(math.sqrt(math.pi / 2) / (2 * passes))  # the cubes are doubled
    parts_ZY = _BASIS_ZY[:, 1:] * _ROOT_DENSITY_Z[:, None] / (2 * math.sqrt(passes))  # sig(x) = (1 + tanh(x / 2)) / 2
    parts_ZY[:, 0] *= math.sqrt(passes - 1)
    return _Constants(
        blocks=blocks,
        passes=np.array(float(passes)),
        of_mean=np.array(1 / (BLOCK**2 * blocks * (blocks - 1) if blocks else passes - 1)),
        independent=np.array(1 / (passes - 1)),
        ones_S=np.ones(passes),
        points_2Z=np.stack([np.ones(len(_Z)), scale * _Z]) / 2,
        parts_ZY=parts_ZY,
    )


def _summarize(given_BCS: Array, masks: Masks, members: int) -> dict[str, Array]:
    """Summarize images with the passes of all members on the last axis."""
    mean_BC, variance_BC, expected_B, variance_of_mean_BC, from_log_odds_BC = _moments(given_BCS, masks, members)
    positive_BC = mean_BC + _EPSILON
    predictive_B = -np.vecdot(mean_BC, np.log(positive_BC))
    entropy_bias_B = np.vecdot(variance_of_mean_BC, _HALF / positive_BC)
    return {
        "mean": mean_BC,
        "variance": variance_BC,
        "predictive_entropy": predictive_B,
        "expected_entropy": expected_B,
        # Entropy is concave, so the difference is negative only by rounding (-1e-16).
        "mutual_information": np.maximum(predictive_B - expected_B, _ZERO) + entropy_bias_B,
        "standard_error": np.sqrt(np.maximum(variance_of_mean_BC, from_log_odds_BC)),
    }


class _Moments(NamedTuple):
    """Mean, variance and mean entropy of passes; and the variance of the mean, from blocks and from log-odds."""

    mean_BC: Array
    variance_BC: Array
    expected_B: Array
    variance_of_mean_BC: Array
    from_log_odds_BC: Array


def _moments(given_BCS: Array, masks: Masks, members: int) -> _Moments:
    """The moments of an ensemble's passes; all members have the same weight."""
    if members == 1:
        return _moments_of_one(given_BCS, masks)
    images, classes, _ = given_BCS.shape
    parts = []
    for passes_MN in _passes_of_members(given_BCS.shape[2], members):
        of_members_BMCN = given_BCS.take(passes_MN, axis=2).transpose(0, 2, 1, 3)
        found = _moments_of_one(of_members_BMCN.reshape(-1, classes, passes_MN.shape[1]), masks)
        parts.append([one.reshape(images, len(passes_MN), *one.shape[1:]) for one in found])
    joined = parts[0] if len(parts) == 1 else [np.concatenate(ones, axis=1) for ones in zip(*parts, strict=True)]
    mean_BC, variance_BC, expected_B, of_mean_BC, from_log_odds_BC = (np.add.reduce(one, 1) / members for one in joined)
    deviation_BMC = joined[0] - mean_BC[:, None]
    variance_BC += np.add.reduce(deviation_BMC * deviation_BMC, axis=1) / members
    return _Moments(mean_BC, variance_BC, expected_B, of_mean_BC / members, from_log_odds_BC / members)


@lru_cache
def _passes_of_members(passes: int, members: int) -> list[Array]:
    """Indices of the passes of each member: of members with one more pass than the others, and of these."""
    one_more = passes % members
    groups = np.arange(one_more), np.arange(one_more, members)
    return [np.array([np.arange(first, passes, members) for first in group]) for group in groups if len(group)]


def _moments_of_one(given_BCS: Array, masks: Masks) -> _Moments:
    """The moments of one network's passes, in few NumPy calls, whose overhead dominates."""
    images, classes, passes = given_BCS.shape
    constants = _constants(passes, masks)
    shape = images, 2 * classes, passes  # D = 2 C: probabilities, then log-odds
    stacked_BDS, logs_BDS = np.empty(shape), np.empty(shape)
    probs_BCS, log_odds_BCS = stacked_BDS[:, :classes], stacked_BDS[:, classes:]
    log_probs_BCS, log_others_BCS = logs_BDS[:, :classes], logs_BDS[:, classes:]
    probs_BCS[...] = given_BCS
    sums_B1S = np.add.reduce(probs_BCS, axis=1, keepdims=True)
    _check(probs_BCS, sums_B1S)
    np.add(probs_BCS, _EPSILON, out=log_probs_BCS)
    # The sum of the other probabilities instead of 1 - p: near 1, float32 resolves 1 - p poorly.
    np.maximum(sums_B1S - probs_BCS, _MIN_COMPLEMENT, out=log_others_BCS)
    np.log(logs_BDS, out=logs_BDS)
    np.subtract(log_probs_BCS, log_others_BCS, out=log_odds_BCS)
    expected_B = -np.add.reduce(np.vecdot(probs_BCS, log_probs_BCS), axis=-1) / constants.passes

    means_BD = np.vecdot(stacked_BDS, constants.ones_S) / constants.passes
    deviation_BDS = np.subtract(stacked_BDS, means_BD[..., None], out=stacked_BDS)
    variance_BD = np.vecdot(deviation_BDS, deviation_BDS) / constants.passes
    squares_BD = _squares_of_blocks(deviation_BDS, constants.blocks) if constants.blocks else variance_BD
    variance_of_mean_BD = squares_BD * constants.of_mean
    mean_BC, variance_of_mean_BC = means_BD[:, :classes], variance_of_mean_BD[:, :classes]
    ratio_BC = variance_of_mean_BD[:, classes:] / np.maximum(variance_BD[:, classes:], _EPSILON)
    towards_half_BC = np.copysign(_ONE, _HALF - mean_BC)
    log_odds_variance_BC = _variance_from_log_odds(
        means_BD[:, classes:], deviation_BDS[:, classes:], towards_half_BC, ratio_BC, constants
    )
    return _Moments(mean_BC, variance_BD[:, :classes], expected_B, variance_of_mean_BC, log_odds_variance_BC)


def _check(probs_BCS: Array, sums_B1S: Array) -> None:
    off_B1S = sums_B1S - _ONE
    is_near = np.vdot(off_B1S, off_B1S) <= _ROW_SUM_TOLERANCE**2  # no entry is larger than the norm
    is_near = is_near or np.abs(off_B1S).max() <= _ROW_SUM_TOLERANCE
    if not (is_near and np.minimum.reduce(probs_BCS, axis=None, initial=0) >= 0):
        raise ValueError("every row of probs_SBC must be a distribution: no negative or NaN entry, and a sum of 1")


def _squares_of_blocks(deviation_BDS: Array, blocks: int) -> Array:
    """Sum the squares of the sums of whole blocks of passes."""
    images, rows, _ = deviation_BDS.shape
    whole_BDKN = deviation_BDS[..., : blocks * BLOCK].reshape(images, rows, blocks, BLOCK)
    sums_BDK = np.matmul(whole_BDKN, _ONES_BLOCK)
    squares_BD: Array = np.vecdot(sums_BDK, sums_BDK)
    return squares_BD


def _variance_from_log_odds(
    mean_BC: Array, deviation_BCS: Array, towards_half_BC: Array, ratio_BC: Array, constants: _Constants
) -> Array:
    """Estimate the variance of the mean probability, assuming that the log-odds are normal over the passes.

    Args:
        mean_BC: mean log-odds.
        deviation_BCS: deviations from it.
        towards_half_BC: 1 where positive deviations lead towards a probability of one half, -1 where negative ones do.
        ratio_BC: variance of the mean log-odds relative to their variance.
        constants: those of the design.
    """
    square_BCS = deviation_BCS * deviation_BCS
    normal_BC2 = np.empty((*mean_BC.shape, 2))
    normal_BC2[..., 0] = mean_BC
    # The standard deviation of the normal distribution with the third moment of the half towards one half, which weighs
    # the tail more; 2 max(x, 0)^3 = |x|^3 + x^3.
    cubes_BC = np.vecdot(square_BCS, np.abs(deviation_BCS)) + np.vecdot(square_BCS, deviation_BCS) * towards_half_BC
    np.cbrt(cubes_BC, out=normal_BC2[..., 1])
    parts_BCY = np.matmul(np.tanh(np.matmul(normal_BC2, constants.points_2Z)), constants.parts_ZY)
    parts_BCY[..., 0] *= np.sqrt(np.minimum(ratio_BC, constants.independent))
    variance_BC: Array = np.vecdot(parts_BCY, parts_BCY)
    return variance_BC
