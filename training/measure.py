"""Measurements of an evaluation: predictions, calibration, out-of-distribution detection and decisions."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from scipy import stats

from model import Artifact, Calibration, find_calibration
from model.calibration import COVERAGES, SetMethod
from model.novelty import FeatureNovelty
from training.data import Images
from training.estimates import Estimates
from training.metrics import classification_metrics, detection_metrics

Array = np.ndarray

RISK, FALSE_ALARM_RATE = 0.05, 0.01  # defaults of the service
_CARD_METHODS, _CARD_COVERAGE = ("lac", "mondrian"), "0.9"  # of the coverage by class
_UNIFORM_SEED = 1  # different from the calibration's seed


def measure(
    estimates: Estimates, labels_B: Array, *, samples: int, seed: int, calibrations: Sequence[Calibration] = ()
) -> dict[str, Any]:
    """Measure the eval-mode prediction, the mean over dropout masks, and moments on labelled images.

    Args:
        estimates: predictions of the images.
        labels_B: their classes.
        samples: number of masks of the Monte Carlo prediction; must be among the estimates.
        seed: seed of the masks.
        calibrations: calibrations of the estimators.

    Returns:
        For "eval", "mc" and, if it was estimated, "moments": `classification_metrics`, the mean predictive entropy in
        nats, and the mean mutual information where it is not 0; for "mc" also samples and seed. With a calibration,
        `calibrated_scores` as "calibrated".
    """
    modes: dict[str, tuple[Any, int]] = {"eval": ("eval", 0), "mc": ("masks", samples), "moments": ("moments", 0)}
    results = {}
    for mode, (estimator, count) in modes.items():
        if (estimator, count) not in estimates:
            continue
        calibration = find_calibration(calibrations, estimator, count)
        results[mode] = measure_one(estimates[estimator, count], labels_B, calibration=calibration)
        if estimator == "masks":
            results[mode] |= {"samples": count, "seed": seed}
    return results


def measure_one(estimate: Mapping[str, Array], labels_B: Array, *, calibration: Calibration | None) -> dict[str, Any]:
    """Measure one estimator; see `measure`."""
    probs_BC, information_B = estimate["probs_BC"], estimate["information_B"]
    row: dict[str, Any] = classification_metrics(probs_BC, labels_B) | {
        "entropy": float(stats.entropy(probs_BC, axis=1).mean())
    }
    if information_B.any():
        row["mutual_information"] = float(information_B.mean())
    if calibration is not None:
        row["calibrated"] = calibrated_scores(calibration, probs_BC, labels_B)
    return row


def calibrated_scores(calibration: Calibration, probs_BC: Array, labels_B: Array) -> dict[str, Any]:
    """Measure calibrated probabilities, prediction sets and abstention.

    Returns:
        `classification_metrics` of the calibrated probabilities; `measure_sets` as "prediction_sets"; as "max_risk", by
        risk, the fraction of images answered and the error among the answers.
    """
    probs_BC = calibration.probabilities(probs_BC)
    confidence_B, is_wrong_B = probs_BC.max(axis=1), probs_BC.argmax(axis=1) != labels_B
    by_risk = {}
    for risk in calibration.confidences:
        is_answered_B = calibration.is_answered(confidence_B, risk=risk)
        error = float(is_wrong_B[is_answered_B].mean()) if is_answered_B.any() else 0.0
        by_risk[str(risk)] = {"answered": float(is_answered_B.mean()), "error": error}
    sets = measure_sets(prediction_sets(calibration, probs_BC), labels_B)
    return classification_metrics(probs_BC, labels_B) | {"prediction_sets": sets, "max_risk": by_risk}


def prediction_sets(calibration: Calibration, probs_BC: Array) -> dict[SetMethod, dict[float, Array]]:
    """Compute prediction sets (B, C) of calibrated probabilities, by method and calibrated coverage."""
    uniform_B = np.random.default_rng(_UNIFORM_SEED).random(len(probs_BC))
    sets: dict[SetMethod, dict[float, Array]] = {}
    for method in get_args(SetMethod):
        sets[method] = {}
        for coverage in COVERAGES:
            members_BC = calibration.prediction_set(probs_BC, uniform_B, coverage=coverage, method=method)
            if members_BC is not None:
                sets[method][coverage] = members_BC
    return sets


def measure_sets(sets: Mapping[SetMethod, Mapping[float, Array]], labels_B: Array) -> dict[str, Any]:
    """Measure prediction sets by method and coverage: the fraction "covered", and the mean "size"."""
    return {
        method: {
            str(coverage): {
                "covered": float(np.take_along_axis(members_BC, labels_B[:, None], axis=1).mean()),
                "size": float(members_BC.sum(axis=1).mean()),
            }
            for coverage, members_BC in by_coverage.items()
        }
        for method, by_coverage in sets.items()
    }


def measure_classes(
    estimates: Estimates,
    labels_B: Array,
    *,
    samples: int,
    classes: Sequence[str],
    calibrations: Sequence[Calibration],
) -> dict[str, dict[str, Any]]:
    """Measure each class that has images: the error over masks, and `measure_sets` if the model is calibrated."""
    probs_BC = estimates["masks", samples]["probs_BC"]
    is_wrong_B = probs_BC.argmax(axis=1) != labels_B
    calibration = find_calibration(calibrations, "masks", samples)
    sets = {} if calibration is None else prediction_sets(calibration, calibration.probabilities(probs_BC))
    results = {}
    for label in np.unique(labels_B).tolist():
        name, is_B = classes[label], labels_B == label
        own = {
            method: {coverage: members_BC[is_B] for coverage, members_BC in by_coverage.items()}
            for method, by_coverage in sets.items()
        }
        results[name] = {"error": float(is_wrong_B[is_B].mean()), "prediction_sets": measure_sets(own, labels_B[is_B])}
    return results


def measure_class_coverage(
    estimates: Estimates,
    labels_B: Array,
    *,
    samples: int,
    classes: Sequence[str],
    calibrations: Sequence[Calibration],
) -> dict[str, dict[str, Any]]:
    """Measure what the card has of each class: the sets of two methods at one coverage, as `measure_classes` does."""
    by_class = measure_classes(estimates, labels_B, samples=samples, classes=classes, calibrations=calibrations)
    chosen: dict[str, dict[str, Any]] = {}
    for name, row in by_class.items():
        for method in _CARD_METHODS:
            if found := row["prediction_sets"].get(method, {}).get(_CARD_COVERAGE):
                chosen.setdefault(name, {"prediction_sets": {}})["prediction_sets"][method] = {_CARD_COVERAGE: found}
    return chosen


def ood_scores(artifact: Artifact, images: Images, estimates: Estimates, *, samples: int) -> dict[str, Array]:
    """Compute out-of-distribution scores (B,): entropies, mutual information, and the artifact's novelty score."""
    masks = estimates["masks", samples]
    scores = {
        "entropy, eval": stats.entropy(estimates["eval", 0]["probs_BC"], axis=1),
        "entropy, mc": stats.entropy(masks["probs_BC"], axis=1),
        "mutual information, mc": masks["information_B"],
    }
    if ("moments", 0) in estimates:
        scores["mutual information, moments"] = estimates["moments", 0]["information_B"]
    if artifact.novelty is not None:
        parts = [_novelty(artifact, part.numpy()) for part in images.inputs_B.split(5_000)]
        scores["novelty"] = np.concatenate(parts)
    return scores


def _novelty(artifact: Artifact, inputs_B: Array) -> Array:
    if isinstance(artifact.novelty, FeatureNovelty):
        probs_BC, features_BF = artifact.engine.predict_with_features(inputs_B)
        return artifact.novelty.score(features_BF, probs_BC, inputs_B)
    if artifact.novelty is None or artifact.chain is None:
        raise ValueError("expected an artifact with a novelty model")
    return artifact.novelty.score(artifact.chain, inputs_B)


def measure_detection(inside: Mapping[str, Array], outside: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Measure by score how well out-of-distribution images are detected; see `detection_metrics`."""
    return {score: detection_metrics(inside[score], outside_B) for score, outside_B in outside.items()}


def decide(
    artifact: Artifact, estimates: Estimates, scores: Mapping[str, Array], *, samples: int
) -> dict[str, Array] | None:
    """Decide which images the service answers with its default options.

    Returns:
        Booleans (B,): "novel" and "answered"; None if the artifact has no calibration or novelty model.
    """
    calibration = find_calibration(artifact.calibrations, "masks", samples)
    if calibration is None or artifact.novelty is None:
        return None
    least_confidence, threshold = calibration.confidences[RISK], artifact.novelty.thresholds[FALSE_ALARM_RATE]
    confidence_B = calibration.probabilities(estimates["masks", samples]["probs_BC"]).max(axis=1)
    novel_B = scores["novelty"] > (np.inf if threshold is None else threshold)
    return {
        "novel": novel_B,
        "answered": ~novel_B & (confidence_B >= (np.inf if least_confidence is None else least_confidence)),
    }


def measure_decisions(
    decided: Mapping[str, Array], estimates: Estimates, labels_B: Array | None, *, samples: int
) -> dict[str, float]:
    """Measure the fraction of images that is "novel", the fraction "answered", and the "error" among the answers.

    Without labels there is no "error".
    """
    answered_B = decided["answered"]
    results = {"novel": float(decided["novel"].mean()), "answered": float(answered_B.mean())}
    if labels_B is not None and answered_B.any():
        predicted_B = estimates["masks", samples]["probs_BC"].argmax(axis=1)
        results["error"] = float((predicted_B != labels_B)[answered_B].mean())
    return results
