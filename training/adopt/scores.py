"""What a compiled network says of labelled images: by each estimator, and its features."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from model.graph import Graph
from model.uncertainty import summarize
from training.adopt.saved import load_or_compute
from training.adopt.stored_images import StoredImage
from training.estimates import Estimates, Estimators

Array = np.ndarray

_SAVED_TOGETHER = 50  # images
SEED = 0  # of the masks


def measure_images(
    estimators: Estimators[Graph],
    images: Sequence[StoredImage],
    prepare: Callable[[StoredImage], Array],
    *,
    samples: Sequence[int],
    folder: Path,
    track: Callable[[Iterable[int]], Iterable[int]],
) -> tuple[Estimates, Array]:
    """Predict images in eval mode, under masks and by moments; what a previous run saved is not computed again.

    Args:
        estimators: of the compiled network.
        images: N of them.
        prepare: reads an image as the network takes it, (1, C, H, W) float32.
        samples: numbers of masks; each uses the first masks of the largest number.
        folder: of the saved parts of this network and input specification; created if missing.
        track: shows the progress over an iterable.

    Returns:
        `probs_BC` and the mutual information `information_B` (nats; 0 for eval mode), by estimator and number of masks;
        and the features before the last layer, (N, F), of no columns if the network has none.
    """
    groups = [images[first : first + _SAVED_TOGETHER] for first in range(0, len(images), _SAVED_TOGETHER)]
    parts = []
    for index in track(range(len(groups))):
        described = json.dumps([list(samples), [image.identity() for image in groups[index]]])
        saved = folder / f"{hashlib.sha256(described.encode()).hexdigest()[:32]}.npz"
        parts.append(load_or_compute(saved, partial(_measure, estimators, groups[index], prepare, samples)))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    estimates: Estimates = {("eval", 0): {"probs_BC": joined["eval"], "information_B": np.zeros(len(images))}}
    for count in samples:
        estimates["masks", count] = {
            "probs_BC": joined[f"mean {count}"],
            "information_B": joined[f"information {count}"],
        }
    if estimators.moments is not None:
        estimates["moments", 0] = {"probs_BC": joined["moments"], "information_B": joined["moments information"]}
    return estimates, joined["features"]


def _measure(
    estimators: Estimators[Graph],
    images: Sequence[StoredImage],
    prepare: Callable[[StoredImage], Array],
    samples: Sequence[int],
) -> dict[str, Array]:
    engine, moments = estimators.masks, estimators.moments
    rows: dict[str, list[Array]] = {}
    for image in images:
        image_1CHW = prepare(image)
        with engine.share_prefix():
            probs_1C, features_1F = engine.predict_with_features(image_1CHW)
            probs_S1C = engine.sample(image_1CHW, max(samples), SEED)
        rows.setdefault("eval", []).append(probs_1C.astype(np.float64))
        rows.setdefault("features", []).append(features_1F)
        for count in samples:
            summary = summarize(probs_S1C[:count], members=engine.members)
            rows.setdefault(f"mean {count}", []).append(summary.mean)
            rows.setdefault(f"information {count}", []).append(summary.mutual_information)
        if moments is not None:
            propagated = moments.predict(image_1CHW)
            rows.setdefault("moments", []).append(propagated.mean)
            rows.setdefault("moments information", []).append(propagated.mutual_information)
    return {name: np.concatenate(values) for name, values in rows.items()}
