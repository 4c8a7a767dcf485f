"""Metrics of class probabilities, confidences and detection scores."""

import numpy as np
from sklearn import metrics

Array = np.ndarray


def classification_metrics(probs_BC: Array, labels_B: Array) -> dict[str, float]:
    """Compute metrics of class probabilities (B, C) against the true classes (B,).

    Returns:
        "accuracy" in [0, 1]; "nll", the mean negative log-likelihood in nats; "brier", the mean squared distance of
        the probabilities from the one-hot class (Brier 1950), in [0, 2]; "ece" and "ece_equal_mass", see
        `calibration_error`, of the confidence in 15 bins; "classwise_ece", its mean over the classes' probabilities
        (Kull et al. 2019, arXiv:1910.12656); and `selective_metrics`.
    """
    classes = range(probs_BC.shape[1])
    probs_BC = probs_BC / probs_BC.sum(axis=1, keepdims=True)  # float32 rows sum to 1 to seven digits only
    predicted_B, confidence_B = probs_BC.argmax(axis=1), probs_BC.max(axis=1)
    right_B = predicted_B == labels_B
    classwise = [calibration_error(probs_BC[:, label], labels_B == label) for label in classes]
    return {
        "accuracy": float(metrics.accuracy_score(labels_B, predicted_B)),
        "nll": float(metrics.log_loss(labels_B, probs_BC, labels=classes)),
        "brier": float(metrics.brier_score_loss(labels_B, probs_BC, labels=classes, scale_by_half=False)),
        "ece": calibration_error(confidence_B, right_B),
        "ece_equal_mass": calibration_error(confidence_B, right_B, equal_mass=True),
        "classwise_ece": float(np.mean(classwise)),
        **selective_metrics(confidence_B, right_B),
    }


def calibration_error(probs_B: Array, outcome_B: Array, *, bins: int = 15, equal_mass: bool = False) -> float:
    """Compute the mean distance between probability and frequency over bins, weighted by the images in them.

    Guo et al. 2017, arXiv:1706.04599, equation 3. Bins have equal width and include their upper edge, or have equally
    many images (Nixon et al. 2019, arXiv:1904.01685).
    """
    deviation_B = probs_B - outcome_B
    if equal_mass:
        parts = np.array_split(deviation_B[np.argsort(probs_B, kind="stable")], bins)
        return sum(abs(float(part.sum())) for part in parts) / len(probs_B)
    bin_B = bins_of_equal_width(probs_B, bins)
    return float(np.abs(np.bincount(bin_B, weights=deviation_B, minlength=bins)).sum() / len(probs_B))


def bins_of_equal_width(probs_B: Array, bins: int) -> Array:
    """Compute the bin of each probability, 0 .. bins - 1; a bin includes its upper edge, the first also 0."""
    bin_B: Array = np.clip(np.ceil(probs_B * bins) - 1, 0, bins - 1).astype(int)
    return bin_B


def errors_by_confidence(confidence_B: Array, right_B: Array) -> Array:
    """Count the errors among the n most confident predictions, for n = 1 .. B."""
    errors_N: Array = np.cumsum(~right_B[np.argsort(-confidence_B, kind="stable")])
    return errors_N


def selective_metrics(confidence_B: Array, right_B: Array) -> dict[str, float]:
    """Compute metrics of selective prediction by confidence.

    Returns:
        "aurc", the error among the n most confident predictions, averaged over n (Geifman & El-Yaniv 2017,
        arXiv:1705.08500); "augrc", the same with the errors as a fraction of all images (Traub et al. 2024,
        arXiv:2407.01032); "coverage_at_5_risk", the largest fraction of images, by confidence,
        with an error of at most 5 %.
    """
    errors_N = errors_by_confidence(confidence_B, right_B)
    count_N = np.arange(1, len(errors_N) + 1)
    acceptable = np.flatnonzero(errors_N / count_N <= 0.05)
    return {
        "aurc": float((errors_N / count_N).mean()),
        "augrc": float(errors_N.mean() / len(errors_N)),
        "coverage_at_5_risk": float(count_N[acceptable[-1]] / len(errors_N)) if len(acceptable) else 0.0,
    }


def detection_metrics(inside_B: Array, outside_B: Array) -> dict[str, float]:
    """Compute metrics of the detection of out-of-distribution images by a score that is high for them.

    Returns:
        "auroc" and "aupr", areas under the receiver operating characteristic and the precision-recall curve, with
        out-of-distribution images as positives; "fpr95", the false-positive rate at a true-positive rate of 95 %.
    """
    scores = np.concatenate([inside_B, outside_B])
    is_outside = np.concatenate([np.zeros(len(inside_B)), np.ones(len(outside_B))])
    false_rate, true_rate, _ = metrics.roc_curve(is_outside, scores)
    return {
        "auroc": float(metrics.roc_auc_score(is_outside, scores)),
        "aupr": float(metrics.average_precision_score(is_outside, scores)),
        "fpr95": float(false_rate[np.searchsorted(true_rate, 0.95)]),
    }
