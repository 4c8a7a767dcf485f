"""Networks that are copied, changed or of other dtypes: the numbers of what they are now, or one clear error."""

import copy
import pickle

import pytest
import torch
from ray import cloudpickle
from torch import nn

from model import MomentPropagation, MonteCarloDropout, load_artifact, summarize

IMAGES_B = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(18))


def mlp() -> nn.Sequential:
    return copy.deepcopy(load_artifact().network)


def cnn() -> nn.Sequential:
    torch.manual_seed(18)
    head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 26 * 26, 5))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout2d(0.2), head).eval()


def found(network: nn.Sequential) -> tuple[torch.Tensor, ...]:
    """What a fresh object makes of a network."""
    mc = MonteCarloDropout(network)
    return mc.predict(IMAGES_B), mc.sample(IMAGES_B, samples=20)


def same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, *(lambda one, by=by: by.loads(by.dumps(one)) for by in (pickle, cloudpickle))],
)
def test_a_copy_gives_the_same_bits_before_and_after_use(make, copied):
    mc = MonteCarloDropout(make())
    for _ in range(2):
        other = copied(mc)
        assert same((other.predict(IMAGES_B), other.sample(IMAGES_B, samples=20)), found(make()))
        mc.sample(IMAGES_B, samples=20)
    if make is mlp:
        moments = MomentPropagation(mlp())
        assert torch.equal(copied(moments).predict(IMAGES_B).covariance, moments.predict(IMAGES_B).covariance)


def test_a_deep_copy_keeps_its_own_weights():
    mc = MonteCarloDropout(mlp())
    before, other = mc.predict(IMAGES_B), copy.deepcopy(mc)
    with torch.no_grad():
        mc._network[-1].bias.add_(torch.arange(10.0))
    assert torch.equal(other.predict(IMAGES_B), before)
    assert not torch.equal(mc.predict(IMAGES_B), before)


def replace_head(network: nn.Sequential) -> None:
    network[-1] = nn.Linear(256, 3)


def append(network: nn.Sequential) -> None:
    network.append(nn.Dropout(0.1)).append(nn.Linear(10, 4))


def delete(network: nn.Sequential) -> None:
    del network[-2]


def nest(network: nn.Sequential) -> None:
    network[-1] = nn.Sequential(network[-1])
    network[-1][0] = nn.Linear(256, 2)


def another_activation(network: nn.Sequential) -> None:
    network[2] = nn.Tanh()


@pytest.mark.parametrize("change", [replace_head, append, delete, nest, another_activation])
def test_layers_that_are_changed_afterwards_count(change):
    torch.manual_seed(18)
    network = mlp()
    mc, moments = MonteCarloDropout(network), MomentPropagation(network)
    found_before = mc.predict(IMAGES_B), mc.sample(IMAGES_B, samples=20)
    moments.predict(IMAGES_B)
    change(network)
    now = mc.predict(IMAGES_B), mc.sample(IMAGES_B, samples=20)
    assert same(now, found(network))
    assert not same(now, found_before) if now[0].shape == found_before[0].shape else True
    if change is another_activation:
        with pytest.raises(TypeError, match="moments pass through"):
            moments.predict(IMAGES_B)
    else:
        assert torch.equal(moments.predict(IMAGES_B).mean, MomentPropagation(network).predict(IMAGES_B).mean)


def test_a_layer_in_a_nested_sequence_that_is_replaced_counts():
    network = cnn()
    mc = MonteCarloDropout(network)
    assert mc.predict(IMAGES_B).shape == (3, 5)
    network[-1][-1] = nn.Linear(4 * 26 * 26, 7)
    assert same((mc.predict(IMAGES_B), mc.sample(IMAGES_B, samples=20)), found(network))
    network[-1][1] = nn.Identity()
    network[2] = nn.Identity()
    with pytest.raises(ValueError, match="no active dropout"):
        mc.sample(IMAGES_B)


def test_weights_of_another_dtype_that_are_assigned_count():
    network = mlp()
    mc, moments = MonteCarloDropout(network), MomentPropagation(network)
    mc.sample(IMAGES_B, samples=20)
    network.load_state_dict({name: one.double() for name, one in network.state_dict().items()}, assign=True)
    assert mc.predict(IMAGES_B).dtype is torch.float64
    assert same((mc.predict(IMAGES_B), mc.sample(IMAGES_B, samples=20)), found(network))
    assert moments.predict(IMAGES_B).mean.shape == (3, 10)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_is_refused_in_train_mode_only(norm):
    torch.manual_seed(18)
    network = nn.Sequential(nn.Flatten(), norm(nn.Linear(784, 32)), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    mc = MonteCarloDropout(network.train())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for call in (mc.predict, mc.sample):
        with pytest.raises(ValueError, match=r"layer 1.*call network.eval\(\) first"):
            call(IMAGES_B)
    network.eval()
    assert torch.equal(mc.predict(IMAGES_B), mc.predict(IMAGES_B))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("way", ["bfloat16", "autocast"])
def test_bfloat16_gives_probabilities_near_those_of_float32(make, way):
    expected = [*found(make()), summarize(found(make())[1]).mean]
    network = make().bfloat16() if way == "bfloat16" else make()
    mc = MonteCarloDropout(network)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
        probs_BC, probs_SBC = mc.predict(IMAGES_B), mc.sample(IMAGES_B, samples=20)
        summary = summarize(probs_SBC)
        mc.sample_until(IMAGES_B, max_samples=50)
        moments = MomentPropagation(network).predict(IMAGES_B).mean if make is mlp else probs_BC
    for one, other in zip([probs_BC, probs_SBC, summary.mean], expected, strict=True):
        assert torch.allclose(one.sum(dim=-1).double(), torch.ones((), dtype=torch.float64), atol=1e-5)
        assert torch.allclose(one.double(), other.double(), atol=0.1)
    assert torch.allclose(moments.sum(dim=-1).double(), torch.ones((), dtype=torch.float64), atol=1e-5)
