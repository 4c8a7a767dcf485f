"""The convolutional network of the recipe, its compiled form, and how it is measured."""

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import conv2d

from model.network import Compiled, compile_to_files
from model.network.monte_carlo import MonteCarloDropout
from training.cnn import CNNConfig, ResidualConvolution, build_cnn
from training.data import Images
from training.estimates import Estimators, estimate

SMALL = CNNConfig(channels=(3, 4, 5), hidden=8)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    """With batch norms whose statistics are not those of the start."""
    torch.manual_seed(0)
    made = build_cnn(SMALL)
    made(torch.rand(64, 1, 28, 28))
    return made.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def compiled(network) -> Compiled:
    return compile_to_files(network, torch.rand(1, 28, 28))


@pytest.fixture(scope="module")
def images() -> Images:
    torch.manual_seed(1)
    return Images(torch.randint(0, 256, (12, 28, 28), dtype=torch.uint8), torch.arange(12) % 10)


def test_a_residual_convolution_adds_to_its_input():
    torch.manual_seed(2)
    block = ResidualConvolution(3).eval()
    features = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        expected = (features + conv2d(features, block.convolution.weight, padding=1) / (1 + 1e-5) ** 0.5).relu()
        assert torch.allclose(block(features), expected, atol=1e-6)


def test_only_the_head_depends_on_masks(compiled):
    assert [site.p for site in compiled.spec.sites] == [0.2, 0.4]
    assert [site.shape for site in compiled.spec.sites] == [(5,), (8,)]
    assert compiled.spec.shared > 0.9


def test_the_compiled_network_is_estimated_as_the_live_one(network, compiled, images):
    found = estimate(Estimators.of_compiled(compiled), images, samples=(10, 30), seed=3, console=Console(quiet=True))
    assert list(found) == [("eval", 0), ("masks", 10), ("masks", 30), ("moments", 0)]
    live = MonteCarloDropout(network)
    assert np.allclose(found["eval", 0]["probs_BC"], live.predict(images.inputs_B), atol=1e-5)
    for samples in (10, 30):
        expected = live.sample(images.inputs_B, samples=samples, seed=3).mean(dim=0)
        assert np.allclose(found["masks", samples]["probs_BC"], expected, atol=1e-5)
    many = live.sample(images.inputs_B, samples=4000, seed=3).double().mean(dim=0)
    assert np.allclose(found["moments", 0]["probs_BC"], many, atol=3e-3)
