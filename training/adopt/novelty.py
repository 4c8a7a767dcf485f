"""The novelty score of an adopted network: fitted to the calibration images, measured on test and other images."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.graph import Graph
from model.input_spec import InputSpec
from model.novelty import FeatureNovelty
from training.adopt.detection import measure_other_images, prepared, transformed
from training.adopt.inputs import prepare_image
from training.adopt.poses import PoseFit
from training.adopt.stored_images import StoredImage
from training.feature_novelty import fit_feature_novelty

Array = np.ndarray


class Scored(NamedTuple):
    """Images, and what the network computes of them in eval mode: features (N, F) and probabilities (N, K)."""

    images: Sequence[StoredImage]
    features_NF: Array
    probs_NC: Array


def fit_novelty(
    engine: Graph, spec: InputSpec, calibration: Scored, seed: int, *, folder: Path | None
) -> FeatureNovelty | None:
    """Fit the novelty score to calibration images.

    Args:
        engine: the compiled network.
        spec: what it takes.
        calibration: the images.
        seed: of the folds.
        folder: where results for the view for poses are kept; None for a score without this view.

    Returns:
        None where `fit_feature_novelty` returns it.
    """
    poses = None
    if folder is not None:
        poses = partial(PoseFit(engine, spec, calibration.images, folder), calibration.features_NF)
    return fit_feature_novelty(calibration.features_NF, calibration.probs_NC, seed, poses=poses)


def measure_novelty(
    engine: Graph,
    spec: InputSpec,
    novelty: FeatureNovelty | None,
    test: Scored,
    others: Mapping[str, Sequence[StoredImage]],
) -> tuple[Array, dict[str, dict[str, float]]]:
    """Measure the novelty score on test images, on other images, and with a view for poses on transformed test images.

    Returns:
        Scores (N,) of the test images, and the results of `measure_other_images`; empty without a novelty score.
    """
    if novelty is None:
        return np.empty(0), {}
    kinds = prepared(others, spec)
    if novelty.poses is None:
        scores_N = novelty.score_features(test.features_NF, test.probs_NC)
    else:
        kinds |= transformed(test.images, spec)
        inputs = (spec.normalize(prepare_image(image, spec)[None]) for image in test.images)
        rows = zip(test.features_NF[:, None], test.probs_NC[:, None], inputs, strict=True)
        scores_N = np.concatenate([novelty.score(*row) for row in rows])
    return scores_N, measure_other_images(engine, novelty, spec, scores_N, kinds)
