"""A client of the application in this process, in place of one of a server, for two models."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
import rgb
import torch
from application import client_of
from torch import nn

from model import Artifact, load_artifact
from model.network.chain import LiveChain


@dataclass(frozen=True)
class Served:
    """A model, and images of the size that its network takes.

    Attributes:
        settings: of a service that serves it.
        artifact: the model.
        network: the network as torch modules.
        pixels_B: forty images, uint8, (40, H, W) or (40, H, W, 3).
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
        return self.artifact.novelty.score(features_BF, probs_BC)


@pytest.fixture(scope="session")
def embedded(fashion) -> Served:
    artifact = load_artifact()
    return Served({}, artifact, artifact.network, fashion.test.images_B[:200:5].numpy().copy(), ("masks", "moments"))


@pytest.fixture(scope="session")
def other(rgb_folder) -> Served:
    """RGB images, another size and another number of classes."""
    settings = {"MCD_MODEL": str(rgb_folder)}
    return Served(settings, load_artifact(rgb_folder), rgb.network(), rgb.noise(51, 40), ("masks",))


@pytest.fixture(scope="session", params=["embedded", "other"])
def served(request) -> Served:
    """Tests that don't need one of the two run for both."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def client(served) -> Iterator[httpx.Client]:
    """With default settings but for the model."""
    with client_of(**served.settings) as opened:
        yield opened
