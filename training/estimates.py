"""Predictions by each estimator: eval mode, dropout masks, moments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track
from scipy import stats
from torch import nn

from model import Artifact, MomentPropagation, MonteCarloDropout, summarize
from model.calibration import Estimator
from model.graph import Graph
from model.moments import MAX_CLASSES, ChainMoments
from model.network.compile import Compiled
from model.network.moments import sobol_points
from training.data import Images

Array = np.ndarray
Estimates = dict[tuple[Estimator, int], dict[str, Array]]

_IMAGES_AT_ONCE = 250


Engine = TypeVar("Engine", MonteCarloDropout, Graph)


@dataclass(frozen=True)
class Estimators(Generic[Engine]):
    """What predicts the images of one network.

    Attributes:
        masks: the network in eval mode and under masks, as live modules or compiled.
        moments: moment propagation; None if the network does not allow it.
    """

    masks: Engine
    moments: MomentPropagation | ChainMoments | None

    @staticmethod
    def of_chain(network: nn.Sequential) -> "Estimators[MonteCarloDropout]":
        """For live linear layers, ReLU and dropout."""
        return Estimators(MonteCarloDropout(network), MomentPropagation(network))

    @staticmethod
    def of_compiled(compiled: Compiled) -> "Estimators[Graph]":
        """For a network that was compiled just now."""
        engine, classes = compiled.graph(), compiled.spec.classes
        if compiled.chain is None or classes > MAX_CLASSES:
            return Estimators(engine, None)
        return Estimators(engine, ChainMoments(compiled.chain, sobol_points(classes), engine.units))

    @staticmethod
    def of_artifact(artifact: Artifact) -> "Estimators[MonteCarloDropout] | Estimators[Graph]":
        """For a saved network: its live modules, if it is one of ours, else its graph."""
        if artifact.config is not None and artifact.members == 1:
            return Estimators.of_chain(artifact.network)
        return Estimators(artifact.engine, artifact.moments)


def estimate(
    estimators: Estimators[Any],
    images: Images,
    *,
    samples: Sequence[int],
    seed: int,
    console: Console,
    label: str = "predicting",
) -> Estimates:
    """Predict images by each estimator.

    Args:
        estimators: of the network.
        images: to predict.
        samples: numbers of masks; each uses the first masks of the largest number.
        seed: of the masks.
        console: console for the progress bar.
        label: label of the progress bar.

    Returns:
        `probs_BC` and the mutual information `information_B` (nats; 0 for eval mode), by estimator and number of masks.
    """
    parts: dict[tuple[Estimator, int], list[tuple[Any, Any]]] = {}
    for inputs_B in track(
        [part_B.numpy() for part_B in images.inputs_B.split(_IMAGES_AT_ONCE)],
        f"{label}: {len(images):,} images",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        probs_BC = np.asarray(estimators.masks.predict(inputs_B), np.float64)
        parts.setdefault(("eval", 0), []).append((probs_BC, np.zeros(len(inputs_B))))
        probs_SBC = np.asarray(estimators.masks.sample(inputs_B, samples=max(samples), seed=seed))
        for count in samples:
            summary = summarize(probs_SBC[:count], members=estimators.masks.members)
            parts.setdefault(("masks", count), []).append((summary.mean, summary.mutual_information))
        if estimators.moments is not None:
            propagated = estimators.moments.predict(inputs_B)
            parts.setdefault(("moments", 0), []).append((propagated.mean, propagated.mutual_information))
    return {
        key: {
            "probs_BC": np.concatenate([probs_BC for probs_BC, _ in rows]),
            "information_B": np.concatenate([information_B for _, information_B in rows]),
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
