"""Fit to held-out images what makes a network's probabilities and doubts mean what they say."""

import itertools
import math

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import optimize, stats
from torch import Tensor, nn

from model import MomentPropagation, MonteCarloDropout, summarize
from model.calibration import COVERAGES, RISKS, SAMPLES, Calibration, Estimator, set_scores, tempered
from model.chain import Chain
from model.novelty import FALSE_ALARM_RATES, FEATURES, ClassGaussians, Novelty, features
from training.data import Images
from training.metrics import errors_by_confidence

Array = np.ndarray
Estimates = dict[tuple[Estimator, int], dict[str, Array]]

CONFIDENCE = 0.95  # of the bound on the risk among the answered
_MASK_SEED = 0
_UNIFORM_SEED = 0
_SHRINKAGE = 1e-4  # towards a covariance of equal variances
_STEPS = 100  # thresholds that are tried
_QUANTILES = np.linspace(0, 1, 101)
_IMAGES_AT_ONCE = 250


def estimate(
    network: nn.Sequential, images: Images, *, samples: tuple[int, ...], seed: int, console: Console
) -> Estimates:
    """Predict images in every way: `probs_BC`, and where there is spread, `information_B` (nats).

    Args:
        network: linear layers, ReLU and dropout.
        images: to predict.
        samples: numbers of masks, each the first of the largest.
        seed: of the masks.
        console: shows the progress.

    Returns:
        By estimator and number of masks.
    """
    mc, moments = MonteCarloDropout(network), MomentPropagation(network)
    parts: dict[tuple[Estimator, int], list[tuple[Tensor, Tensor]]] = {}
    for inputs_B in track(
        images.inputs_B.split(_IMAGES_AT_ONCE), f"{len(images):,} images", console=console, transient=True
    ):
        parts.setdefault(("eval", 0), []).append((mc.predict(inputs_B).double(), torch.zeros(len(inputs_B))))
        probs_SBC = mc.sample(inputs_B, samples=max(samples), seed=seed)
        for count in samples:
            found = summarize(probs_SBC[:count])
            parts.setdefault(("masks", count), []).append((found.mean, found.mutual_information))
        propagated = moments.predict(inputs_B)
        parts.setdefault(("moments", 0), []).append((propagated.mean, propagated.mutual_information))
    return {
        key: {
            "probs_BC": torch.cat([probs_BC for probs_BC, _ in rows]).numpy(),
            "information_B": torch.cat([information_B for _, information_B in rows]).numpy(),
        }
        for key, rows in parts.items()
    }


def fit_calibrations(network: nn.Sequential, images: Images, *, console: Console) -> list[Calibration]:
    """Calibrate every estimator on images that training has not seen."""
    labels_B = images.labels_B.numpy()
    estimates = estimate(network, images, samples=SAMPLES, seed=_MASK_SEED, console=console)
    return [
        fit_calibration(**found, labels_B=labels_B, estimator=estimator, samples=samples)
        for (estimator, samples), found in estimates.items()
    ]


def fit_calibration(
    probs_BC: Array, information_B: Array, labels_B: Array, *, estimator: Estimator, samples: int
) -> Calibration:
    """Fit temperature, prediction sets and abstention of one estimator.

    Args:
        probs_BC: mean class probabilities of labelled images.
        information_B: mutual information, in nats.
        labels_B: their classes.
        estimator: what made them.
        samples: from how many masks.
    """
    values = {"predictive_entropy": stats.entropy(probs_BC, axis=1), "mutual_information": information_B}
    reference = {name: np.quantile(value_B, _QUANTILES).round(7).tolist() for name, value_B in values.items()}
    temperature = fit_temperature(probs_BC, labels_B)
    probs_BC = tempered(probs_BC, temperature)
    uniform_B = np.random.default_rng(_UNIFORM_SEED).random(len(labels_B))
    true_scores = {
        method: set_scores(probs_BC, uniform_B, method=method)[np.arange(len(labels_B)), labels_B]
        for method in ("lac", "aps")
    }
    return Calibration(
        estimator=estimator,
        samples=samples,
        temperature=temperature,
        set_scores={
            method: {coverage: conformal_quantile(scores_B, coverage) for coverage in COVERAGES}
            for method, scores_B in true_scores.items()
        },
        confidences={risk: least_confidence(probs_BC, labels_B, risk) for risk in RISKS},
        reference=reference,
    )


def fit_temperature(probs_BC: Array, labels_B: Array) -> float:
    """Find the temperature of the least mean negative log-likelihood."""

    def loss(log_temperature: float) -> float:
        likelihood_B = tempered(probs_BC, np.exp(log_temperature))[np.arange(len(labels_B)), labels_B]
        return -float(np.log(likelihood_B + 1e-300).mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-4}).x))


def conformal_quantile(scores_B: Array, coverage: float) -> float | None:
    """The score that a new one exceeds with a probability of at most 1 - coverage, whatever its distribution.

    That of rank ceil((n + 1) coverage) among n (Lei et al. 2018, doi:10.1080/01621459.2017.1307116); None if there are
    too few to know.
    """
    rank = math.ceil((len(scores_B) + 1) * coverage - 1e-9)
    return float(np.sort(scores_B)[rank - 1]) if rank <= len(scores_B) else None


def least_confidence(probs_BC: Array, labels_B: Array, risk: float) -> float | None:
    """The confidence from which on predictions are answered, so that at most a part `risk` of those is wrong.

    Thresholds are tried from strict to lax until the upper bound on the risk (Clopper & Pearson 1934, at a confidence
    of 95 %) exceeds it: as the order is fixed beforehand, the bound holds for the last one that did not (fixed-sequence
    testing, Angelopoulos et al. 2021, arXiv:2110.01052). The first leaves as many answers as allow for one error. None
    if not even that one keeps the risk, or there are not so many images.
    """
    confidence_B = probs_BC.max(axis=1)
    errors_N = errors_by_confidence(confidence_B, probs_BC.argmax(axis=1) == labels_B)
    descending_N = -np.sort(-confidence_B)
    first = next(count for count in itertools.count(2) if _upper_bound(1, count) <= risk)
    if first > len(labels_B):
        return None
    least = None
    for answered in np.linspace(first, len(labels_B), _STEPS, dtype=int):
        if _upper_bound(errors_N[answered - 1], answered) > risk:
            break
        least = float(descending_N[answered - 1])
    return least


def _upper_bound(errors: int, answered: int) -> float:
    return 1.0 if errors == answered else float(stats.beta.ppf(CONFIDENCE, errors + 1, answered - errors))


def fit_novelty(network: nn.Sequential, train: Images, images: Images) -> Novelty:
    """Fit the distributions of features to training images, and their scales and thresholds to others."""
    chain = Chain(network)
    views, labels_B = _features(chain, train), train.labels_B.numpy()
    others = _features(chain, images)
    gaussians = {name: _class_gaussians(views[name], labels_B, others[name]) for name in FEATURES}
    scores_B = np.max([gaussians[name].score(others[name]) for name in FEATURES], axis=0)
    return Novelty(gaussians, {rate: conformal_quantile(scores_B, 1 - rate) for rate in FALSE_ALARM_RATES})


def _features(chain: Chain, images: Images) -> dict[str, Array]:
    parts = [features(chain, inputs_B.numpy()) for inputs_B in images.inputs_B.split(5_000)]
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
