"""A small RGB network of random weights, and its artifact: 3 x 20 x 24 pixels, seven classes."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import save_compiled
from model.input_spec import InputSpec
from model.network import compile_to_files
from training.adopt.novelty import fit_feature_novelty
from training.examples import make_example

SPEC = InputSpec(
    channels=3, height=20, width=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize="crop", crop_fraction=0.9
)
CLASSES = tuple("abcdefg")


def network() -> nn.Sequential:
    torch.manual_seed(50)
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.4), nn.Linear(160, len(CLASSES))).eval()


def save(folder: Path) -> Path:
    """Without calibration; the novelty score is fitted to images of noise, of which three are examples."""
    compiled = compile_to_files(network(), np.ones((1, *SPEC.shape), np.float32))
    noise_B = np.random.default_rng(53).integers(0, 256, (150, *SPEC.pixel_shape), np.uint8)
    probs_BC, features_BF = compiled.graph().predict_with_features(SPEC.normalize(noise_B))
    novelty = fit_feature_novelty(features_BF, probs_BC, seed=0)
    card = {"classes": list(CLASSES), "recipe": {"name": "rgb"}}
    examples = [make_example(name, pixels) for name, pixels in zip("gce", noise_B, strict=False)]
    save_compiled(folder, compiled, card, input_spec=SPEC, novelty=novelty, examples=examples)
    return folder
