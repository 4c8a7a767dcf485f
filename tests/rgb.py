"""A small RGB network of random weights, and its artifact: 3 x 20 x 24 pixels, seven classes."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import save_compiled, summarize
from model.input_spec import InputSpec
from model.network import Compiled, compile_to_files
from training.calibrate import fit_calibration
from training.examples import make_example
from training.feature_novelty import fit_feature_novelty

SPEC = InputSpec(
    channels=3, height=20, width=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize="crop", crop_fraction=0.9
)
CLASSES = tuple("abcdefg")
_IMAGES, _WRONG, _CALIBRATED = 150, 3, (10, 30, 100)


def network() -> nn.Sequential:
    torch.manual_seed(50)
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()]
    last = nn.Linear(160, len(CLASSES))
    nn.init.normal_(last.weight, std=2.5)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.4), last).eval()


def noise(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SPEC.pixel_shape), np.uint8)


@functools.cache
def compiled() -> Compiled:
    """The compiled network, for tests that need not compile it."""
    return compile_to_files(network(), np.ones((1, *SPEC.shape), np.float32))


def save(folder: Path) -> Path:
    """Calibrated to images of noise, whose classes are the predicted ones, but for the least confident."""
    graph, images_B = compiled().graph(), SPEC.normalize(noise(53, _IMAGES))
    probs_BC, features_BF = graph.predict_with_features(images_B)
    labels_B = probs_BC.argmax(axis=1)
    labels_B[np.argsort(probs_BC.max(axis=1))[:_WRONG]] -= 1
    labels_B %= len(CLASSES)
    found = [("eval", 0, probs_BC.astype(np.float64), np.zeros(_IMAGES))]
    for count in _CALIBRATED:
        masked = summarize(graph.sample(images_B, count, 0))
        found.append(("masks", count, masked.mean, masked.mutual_information))
    card = {
        "classes": list(CLASSES),
        "recipe": {"name": "rgb"},
        "data": {"split": {"calibration": _IMAGES}},
        "metrics": {"test": {mode: {"accuracy": 1 - _WRONG / _IMAGES} for mode in ("eval", "mc")}},
    }
    pixels_B = np.random.default_rng(53).integers(0, 256, (3, *SPEC.pixel_shape), np.uint8)
    save_compiled(
        folder, compiled(), card, input_spec=SPEC, novelty=fit_feature_novelty(features_BF, probs_BC, seed=0),
        examples=[make_example(name, pixels) for name, pixels in zip("gce", pixels_B, strict=True)],
        calibrations=[
            fit_calibration(probs, information, labels_B, estimator=estimator, samples=samples)
            for estimator, samples, probs, information in found
        ],
    )  # fmt: skip
    return folder
