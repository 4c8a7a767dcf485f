"""Predictions by each estimator: eval mode, dropout masks, moments."""

from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import stats
from torch import Tensor, nn

from model import MomentPropagation, MonteCarloDropout, summarize
from model.calibration import Estimator
from training.data import Images

Array = np.ndarray
Estimates = dict[tuple[Estimator, int], dict[str, Array]]

_IMAGES_AT_ONCE = 250


def estimate(
    network: nn.Sequential,
    images: Images,
    *,
    samples: Sequence[int],
    seed: int,
    console: Console,
    label: str = "predicting",
) -> Estimates:
    """Predict images by each estimator.

    Args:
        network: linear layers, ReLU and dropout.
        images: to predict.
        samples: numbers of masks; each uses the first masks of the largest number.
        seed: of the masks.
        console: console for the progress bar.
        label: label of the progress bar.

    Returns:
        `probs_BC` and the mutual information `information_B` (nats; 0 for eval mode), by estimator and number of masks.
    """
    mc, moments = MonteCarloDropout(network), MomentPropagation(network)
    parts: dict[tuple[Estimator, int], list[tuple[Tensor, Tensor]]] = {}
    for inputs_B in track(
        images.inputs_B.split(_IMAGES_AT_ONCE),
        f"{label}: {len(images):,} images",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        parts.setdefault(("eval", 0), []).append((mc.predict(inputs_B).double(), torch.zeros(len(inputs_B))))
        probs_SBC = mc.sample(inputs_B, samples=max(samples), seed=seed)
        for count in samples:
            summary = summarize(probs_SBC[:count])
            parts.setdefault(("masks", count), []).append((summary.mean, summary.mutual_information))
        propagated = moments.predict(inputs_B)
        parts.setdefault(("moments", 0), []).append((propagated.mean, propagated.mutual_information))
    return {
        key: {
            "probs_BC": torch.cat([probs_BC for probs_BC, _ in rows]).numpy(),
            "information_B": torch.cat([information_B for _, information_B in rows]).numpy(),
        }
        for key, rows in parts.items()
    }


def combine_members(members: Sequence[Estimates]) -> Estimates:
    """Combine the estimates of an ensemble's members (Lakshminarayanan et al. 2017, arXiv:1612.01474).

    Returns:
        The mean probabilities, and the mutual information between the prediction and the choice of member and mask: the
        entropy of the mean minus the mean of the members' expected entropies.
    """
    joined: Estimates = {}
    for key in members[0]:
        probs_MBC = np.stack([member[key]["probs_BC"] for member in members])
        information_MB = np.stack([member[key]["information_B"] for member in members])
        probs_BC = probs_MBC.mean(axis=0)
        expected_B = (stats.entropy(probs_MBC, axis=2) - information_MB).mean(axis=0)
        joined[key] = {"probs_BC": probs_BC, "information_B": stats.entropy(probs_BC, axis=1) - expected_B}
    return joined
