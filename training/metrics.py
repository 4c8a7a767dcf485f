"""Figures that tell how good class probabilities are."""

import numpy as np

Array = np.ndarray


def scores(probs_BC: Array, labels_B: Array) -> dict[str, float]:
    """Score class probabilities (B, C) by the true classes (B,).

    Returns:
        "accuracy" in [0, 1]; "nll", the mean negative log-likelihood in nats; "brier", the mean squared distance of
        the probabilities from the one-hot class (Brier 1950), in [0, 2]; "ece" and "ece_equal_mass", see
        `calibration_error`, of the confidence in 15 bins; "classwise_ece", its mean over the classes' probabilities
        (Kull et al. 2019, arXiv:1910.12656); and `selective`.
    """
    rows = np.arange(len(labels_B))
    one_hot_BC = np.eye(probs_BC.shape[1])[labels_B]
    confidence_B, right_B = probs_BC.max(axis=1), probs_BC.argmax(axis=1) == labels_B
    classwise = [calibration_error(probs_B, is_B) for probs_B, is_B in zip(probs_BC.T, one_hot_BC.T, strict=True)]
    return {
        "accuracy": float(right_B.mean()),
        "nll": float(-np.log(probs_BC[rows, labels_B]).mean()),
        "brier": float(np.square(probs_BC - one_hot_BC).sum(axis=1).mean()),
        "ece": calibration_error(confidence_B, right_B),
        "ece_equal_mass": calibration_error(confidence_B, right_B, equal_mass=True),
        "classwise_ece": float(np.mean(classwise)),
        **selective(confidence_B, right_B),
    }


def calibration_error(probs_B: Array, happened_B: Array, *, bins: int = 15, equal_mass: bool = False) -> float:
    """Mean distance between probability and frequency over bins, weighted by the images in them.

    Guo et al. 2017, arXiv:1706.04599, equation 3. Bins are of equal width, each with its upper edge, or have equally
    many images (Nixon et al. 2019, arXiv:1904.01685).
    """
    off_B = probs_B - happened_B
    if equal_mass:
        parts = np.array_split(off_B[np.argsort(probs_B, kind="stable")], bins)
        return sum(abs(float(part.sum())) for part in parts) / len(probs_B)
    bin_B = bins_of_equal_width(probs_B, bins)
    return float(np.abs(np.bincount(bin_B, weights=off_B, minlength=bins)).sum() / len(probs_B))


def bins_of_equal_width(probs_B: Array, bins: int) -> Array:
    """Number of each probability's bin, 0 .. bins - 1; a bin holds its upper edge, the first 0 too."""
    bin_B: Array = np.clip(np.ceil(probs_B * bins) - 1, 0, bins - 1).astype(int)
    return bin_B


def errors_by_confidence(confidence_B: Array, right_B: Array) -> Array:
    """How many of the n most confident are wrong, for n = 1 .. B."""
    errors_N: Array = np.cumsum(~right_B[np.argsort(-confidence_B, kind="stable")])
    return errors_N


def selective(confidence_B: Array, right_B: Array) -> dict[str, float]:
    """Score the confidence as a reason to abstain.

    Returns:
        "aurc", the mean error among the most confident, over how many they are (Geifman & El-Yaniv 2017,
        arXiv:1705.08500); "augrc", the same of the errors' part of all images (Traub et al. 2024, arXiv:2407.01032);
        "coverage_at_5_risk", the largest part of images, the most confident, of which at most 5 % are wrong.
    """
    errors_N = errors_by_confidence(confidence_B, right_B)
    count_N = np.arange(1, len(errors_N) + 1)
    kept = np.flatnonzero(errors_N / count_N <= 0.05)
    return {
        "aurc": float((errors_N / count_N).mean()),
        "augrc": float(errors_N.mean() / len(errors_N)),
        "coverage_at_5_risk": float(count_N[kept[-1]] / len(errors_N)) if len(kept) else 0.0,
    }
