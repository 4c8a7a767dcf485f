"""Cases of the numbers in model/ that a change of one operator or constant would get wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from model import MomentPropagation, MonteCarloDropout, dropout_layer, load_artifact, summarize
from model.network.chain import LiveChain
from service.inference.decision import DecisionOptions, DecisionPolicy
from service.inference.predictor import Predictor


def test_dropping_everything_adds_no_gradient():
    X = torch.randn(4, 5, requires_grad=True)
    (dropout_layer(X, 1) + X).sum().backward()
    assert torch.equal(X.grad, torch.ones_like(X))


@pytest.mark.parametrize("relu", [False, True])
def test_moments_pass_layers_without_dropout_behind_the_first(relu):
    torch.manual_seed(28)
    between = [nn.ReLU()] if relu else []
    network = nn.Sequential(nn.Linear(12, 30), nn.Dropout(0.3), nn.Linear(30, 20), *between, nn.Linear(20, 4)).eval()
    with torch.no_grad():
        network[-1].weight *= 4
    images_B = torch.randn(5, 12)
    found = MomentPropagation(network).predict(images_B)
    sampled = summarize(MonteCarloDropout(network).sample(images_B, samples=4000, seed=0))
    assert torch.allclose(found.mean, sampled.mean, atol=0.01)
    assert torch.allclose(found.variance, sampled.variance, atol=0.002, rtol=0.1)


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_parameters_that_are_trained_are_read(bias):
    torch.manual_seed(29)
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3, bias=bias)).to(torch.bfloat16)
    exact = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3, bias=bias))
    exact.load_state_dict(network.state_dict())
    images_B = torch.rand(2, 6).to(torch.bfloat16).float()
    assert all(parameter.requires_grad for parameter in network.parameters())
    found, expected = (MomentPropagation(one).predict(images_B) for one in (network, exact))
    assert torch.equal(found.mean, expected.mean)


@pytest.mark.parametrize(("layer", "axes"), [(nn.Dropout1d, {3}), (nn.Dropout2d, {3, 4}), (nn.Dropout3d, {5})])
def test_channel_dropout_takes_features_of_its_axes_only(layer, axes):
    for count in (2, 3, 4, 5, 6):
        shape = (4,) + (2,) * (count - 2)
        network = nn.Sequential(layer(0.5), nn.Flatten(), nn.Linear(4 * 2 ** (count - 2), 3))
        mc, images_B = MonteCarloDropout(network), torch.rand(2, *shape)
        if count in axes:
            assert mc.sample(images_B, samples=4).shape == (4, 2, 3)
        else:
            with pytest.raises(ValueError, match=f"{layer.__name__} masks features of .* axes.*got {count}"):
                mc.sample(images_B, samples=4)


@pytest.mark.parametrize("together", [False, True])
def test_novelty_is_scored_on_pixels_in_parts_of_255(together):
    artifact = load_artifact()
    pixels_BHW = np.random.default_rng(5).integers(0, 256, (3, 28, 28), np.uint8)
    options = DecisionOptions(coverage=0.9, set_method="lac", max_risk=0.05, false_alarm_rate=0.01)
    policy = DecisionPolicy(artifact, together=together)
    found = policy.decide(Predictor(artifact).predict(pixels_BHW), pixels_BHW, options, seed=0)
    expected = artifact.novelty.score(LiveChain(artifact.network), (pixels_BHW[:, None] / 255).astype(np.float32))
    assert np.allclose(found.novelty.score_B, expected, rtol=1e-5)
