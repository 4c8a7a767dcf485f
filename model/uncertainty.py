"""What S stochastic passes say together: mean, spread, and the parts of the entropy."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_ROW_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Summary of S passes over B images and C classes; float64, entropies in nats.

    Attributes:
        mean: (B, C), average probability over the passes.
        variance: (B, C), population variance over the passes (divided by S).
        predictive_entropy: (B,), entropy of the mean: the total.
        expected_entropy: (B,), mean entropy of a pass: the aleatoric part.
        mutual_information: (B,), their difference between prediction and weights: the epistemic part.
        standard_error: (B, C), Monte-Carlo standard error of `mean`, for independent passes.
    """

    mean: Tensor
    variance: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    standard_error: Tensor


def summarize(probs_SBC: Tensor | np.ndarray) -> Uncertainty:
    """Average S passes and split their predictive entropy, in nats.

    H[mean] = E[H] + I, total = aleatoric + epistemic (Houlsby et al. 2011, arXiv:1112.5745, equation 2; Gal 2016,
    "Uncertainty in Deep Learning", section 3.3.1). The standard error of the mean of S independent passes is the
    sample standard deviation over sqrt(S), here sqrt(variance / (S - 1)).

    Args:
        probs_SBC: softmax output of each pass, tensor or array; every row sums to 1.

    Raises:
        ValueError: not of three axes, fewer than two passes, or a row that is no probability distribution.
    """
    probs_SBC = torch.as_tensor(probs_SBC).to(torch.float64)
    _check_probabilities(probs_SBC)
    passes = probs_SBC.shape[0]
    mean_BC = probs_SBC.mean(dim=0)
    variance_BC = (probs_SBC - mean_BC).square().mean(dim=0)
    predictive_B = entropy(mean_BC)
    expected_B = entropy(probs_SBC).mean(dim=0)
    return Uncertainty(
        mean=mean_BC,
        variance=variance_BC,
        predictive_entropy=predictive_B,
        expected_entropy=expected_B,
        # Never negative, since entropy is concave (Jensen); rounding alone can put it at -1e-16.
        mutual_information=(predictive_B - expected_B).clamp(min=0),
        standard_error=(variance_BC / (passes - 1)).sqrt(),
    )


def entropy(probs_C: Tensor) -> Tensor:
    """Shannon entropy over the last axis, in nats; 0 log 0 is 0.

    Args:
        probs_C: probabilities of shape (..., C).

    Returns:
        A tensor of shape (...).
    """
    terms_C: Tensor = torch.special.entr(probs_C)
    return terms_C.sum(dim=-1)


def _check_probabilities(probs_SBC: Tensor) -> None:
    if probs_SBC.ndim != 3:
        raise ValueError(f"probs_SBC must have axes (samples, images, classes), got shape {tuple(probs_SBC.shape)}")
    if probs_SBC.shape[0] < 2:
        raise ValueError(f"at least 2 passes, got {probs_SBC.shape[0]}: one pass has no spread")
    deviation_SB = (probs_SBC.sum(dim=-1) - 1).abs()
    if not bool((deviation_SB <= _ROW_SUM_TOLERANCE).all() and (probs_SBC >= 0).all()):
        raise ValueError("every row of probs_SBC must be a distribution: no negative or NaN entry, and a sum of 1")
