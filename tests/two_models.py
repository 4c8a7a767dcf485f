"""What tests know of a model that is served, and of images for it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model import Artifact
from model.network.chain import LiveChain


@dataclass(frozen=True)
class Served:
    """A model, and images of the size that its network takes.

    Attributes:
        settings: of a service that serves it.
        artifact: the model.
        network: the network as torch modules.
        pixels_B: 200 images, uint8, (200, H, W) or (200, H, W, 3).
        methods: the methods that the network allows.
    """

    settings: dict[str, str]
    artifact: Artifact
    network: nn.Module
    pixels_B: np.ndarray
    methods: tuple[str, ...]

    def inputs(self, pixels_B: np.ndarray) -> torch.Tensor:
        """The network's input, (B, C, H, W)."""
        return torch.from_numpy(self.artifact.input.normalize(pixels_B))

    def novelty(self, pixels_B: np.ndarray) -> np.ndarray:
        """Novelty scores, (B,), computed beside the service."""
        inputs_B = self.artifact.input.normalize(pixels_B)
        if "moments" in self.methods:
            return self.artifact.novelty.score(LiveChain(self.network), inputs_B)
        probs_BC, features_BF = self.artifact.engine.predict_with_features(inputs_B)
        return self.artifact.novelty.score(features_BF, probs_BC, inputs_B)
