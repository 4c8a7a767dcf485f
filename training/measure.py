"""What an evaluation measures: of predictions, of promises, of novelty, and of decisions."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from scipy import stats

from model import Artifact, Calibration, find_calibration
from model.calibration import COVERAGES, SetMethod
from model.chain import Chain
from training.data import Images
from training.estimates import Estimates
from training.metrics import scores, separation

Array = np.ndarray

RISK, FALSE_ALARM_RATE = 0.05, 0.01  # what the service decides by unless told otherwise
_UNIFORM_SEED = 1  # not that of the calibration


def measure(
    estimates: Estimates, labels_B: Array, *, samples: int, seed: int, calibrations: Sequence[Calibration] = ()
) -> dict[str, Any]:
    """Measure the eval-mode prediction, the mean over dropout masks, and moments on labelled images.

    Args:
        estimates: of the images.
        labels_B: their classes.
        samples: masks of the Monte-Carlo prediction; among the estimates.
        seed: that the masks had.
        calibrations: of the estimators.

    Returns:
        For "eval", "mc" and "moments": `scores`, and mean predictive entropy in nats; but for a single network's eval
        mode also the mean mutual information; for "mc" samples and seed. Where there is a calibration,
        `calibrated_scores` as "calibrated".
    """
    modes: dict[str, tuple[Any, int]] = {"eval": ("eval", 0), "mc": ("masks", samples), "moments": ("moments", 0)}
    measured = {}
    for mode, (estimator, count) in modes.items():
        calibration = find_calibration(calibrations, estimator, count)
        measured[mode] = measure_one(estimates[estimator, count], labels_B, calibration=calibration)
        if estimator == "masks":
            measured[mode] |= {"samples": count, "seed": seed}
    return measured


def measure_one(found: Mapping[str, Array], labels_B: Array, *, calibration: Calibration | None) -> dict[str, Any]:
    """Measure one estimator, see `measure`."""
    probs_BC, information_B = found["probs_BC"], found["information_B"]
    row: dict[str, Any] = scores(probs_BC, labels_B) | {"entropy": float(stats.entropy(probs_BC, axis=1).mean())}
    if information_B.any():
        row["mutual_information"] = float(information_B.mean())
    if calibration is not None:
        row["calibrated"] = calibrated_scores(calibration, probs_BC, labels_B)
    return row


def calibrated_scores(calibration: Calibration, probs_BC: Array, labels_B: Array) -> dict[str, Any]:
    """Measure what a calibration promises.

    Returns:
        `scores` of the calibrated probabilities; `kept_sets`; for each risk, which part of images is answered, and
        which part of the answers is wrong.
    """
    probs_BC = calibration.probabilities(probs_BC)
    confidence_B, wrong_B = probs_BC.max(axis=1), probs_BC.argmax(axis=1) != labels_B
    answered = {}
    for risk in calibration.confidences:
        is_answered_B = calibration.is_answered(confidence_B, risk=risk)
        error = float(wrong_B[is_answered_B].mean()) if is_answered_B.any() else 0.0
        answered[str(risk)] = {"answered": float(is_answered_B.mean()), "error": error}
    kept = kept_sets(prediction_sets(calibration, probs_BC), labels_B)
    return scores(probs_BC, labels_B) | {"prediction_sets": kept, "max_risk": answered}


def prediction_sets(calibration: Calibration, probs_BC: Array) -> dict[SetMethod, dict[float, Array]]:
    """The sets (B, C) by method and coverage of calibrated probabilities, where calibrated."""
    uniform_B = np.random.default_rng(_UNIFORM_SEED).random(len(probs_BC))
    found: dict[SetMethod, dict[float, Array]] = {}
    for method in get_args(SetMethod):
        found[method] = {}
        for coverage in COVERAGES:
            members_BC = calibration.prediction_set(probs_BC, uniform_B, coverage=coverage, method=method)
            if members_BC is not None:
                found[method][coverage] = members_BC
    return found


def kept_sets(sets: Mapping[SetMethod, Mapping[float, Array]], labels_B: Array) -> dict[str, Any]:
    """Tell by method and coverage in which part of images the true class is "covered", and the sets' mean "size"."""
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
    estimates: Estimates, labels_B: Array, *, samples: int, artifact: Artifact
) -> dict[str, dict[str, Any]]:
    """Measure by true class the masks' part of errors, and, of a calibrated model, `kept_sets`."""
    probs_BC = estimates["masks", samples]["probs_BC"]
    wrong_B = probs_BC.argmax(axis=1) != labels_B
    calibration = find_calibration(artifact.calibrations, "masks", samples)
    sets = {} if calibration is None else prediction_sets(calibration, calibration.probabilities(probs_BC))
    measured = {}
    for label, name in enumerate(artifact.classes):
        is_B = labels_B == label
        own = {
            method: {coverage: members_BC[is_B] for coverage, members_BC in by_coverage.items()}
            for method, by_coverage in sets.items()
        }
        measured[name] = {"error": float(wrong_B[is_B].mean()), "prediction_sets": kept_sets(own, labels_B[is_B])}
    return measured


def novelty_scores(artifact: Artifact, images: Images, estimates: Estimates, *, samples: int) -> dict[str, Array]:
    """Score how unlike the training's images are, by each estimator's doubts and by the artifact's novelty score."""
    masks = estimates["masks", samples]
    scored = {
        "entropy, eval": stats.entropy(estimates["eval", 0]["probs_BC"], axis=1),
        "entropy, mc": stats.entropy(masks["probs_BC"], axis=1),
        "mutual information, mc": masks["information_B"],
        "mutual information, moments": estimates["moments", 0]["information_B"],
    }
    if artifact.novelty is not None:
        chain = Chain(artifact.network)
        parts = [artifact.novelty.score(chain, part.numpy()) for part in images.inputs_B.split(5_000)]
        scored["novelty"] = np.concatenate(parts)
    return scored


def told_apart(inside: Mapping[str, Array], outside: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Measure by score how well images that are no clothing are told from those that are, see `separation`."""
    return {score: separation(inside[score], outside_B) for score, outside_B in outside.items()}


def decisions(
    artifact: Artifact, estimates: Estimates, scored: Mapping[str, Array], *, samples: int
) -> dict[str, Array] | None:
    """Decide as the service does, unless told otherwise, from whom to abstain.

    Returns:
        Whether images (B,) are "novel", and whether they are "answered"; None if the artifact can't tell.
    """
    calibration = find_calibration(artifact.calibrations, "masks", samples)
    if calibration is None or artifact.novelty is None:
        return None
    least, threshold = calibration.confidences[RISK], artifact.novelty.thresholds[FALSE_ALARM_RATE]
    confidence_B = calibration.probabilities(estimates["masks", samples]["probs_BC"]).max(axis=1)
    novel_B = scored["novelty"] > (np.inf if threshold is None else threshold)
    return {"novel": novel_B, "answered": ~novel_B & (confidence_B >= (np.inf if least is None else least))}


def measure_decisions(
    decided: Mapping[str, Array], estimates: Estimates, labels_B: Array | None, *, samples: int
) -> dict[str, float]:
    """Tell which part of images is "novel", which part is "answered", and which part of the answers is an "error".

    Without labels every answer is one.
    """
    answered_B = decided["answered"]
    measured = {"novel": float(decided["novel"].mean()), "answered": float(answered_B.mean())}
    if labels_B is not None and answered_B.any():
        predicted_B = estimates["masks", samples]["probs_BC"].argmax(axis=1)
        measured["error"] = float((predicted_B != labels_B)[answered_B].mean())
    return measured
