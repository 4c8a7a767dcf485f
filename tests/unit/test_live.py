"""Modules run under masks as they are now, against loops over masks, gradients included."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo import IMAGES_B, ZOO, loop, make

from model.network.attention import attend
from model.network.dropout_mode import DropoutMode
from model.network.live import LiveNetwork
from model.network.twins import eval_twin, with_own_buffers, without_fused_attention

DESIGNS = ["stratified", "independent"]


def masks(samples: int = 12, seed: int = 5, design: str = "stratified") -> tuple[range, int, str]:
    return range(samples), seed, design


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("design", DESIGNS)
def test_a_live_network_equals_the_loop_over_masks(name, design):
    network, image_1 = make(name), IMAGES_B[:1].clone()
    training = [module.training for module in network.modules()]
    live = LiveNetwork(network)
    found = live.sample(image_1, masks(12, 5, design))
    expected, used = loop(network, image_1, 12, 5, design)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert [(p, np.prod(shape)) for p, shape in live.sites(image_1)] == used
    assert torch.allclose(live.predict(image_1), copy.deepcopy(network).eval()(image_1.clone()), atol=1e-6)
    assert torch.equal(image_1, IMAGES_B[:1])
    assert [module.training for module in network.modules()] == training


@pytest.mark.parametrize("name", ["mlp", "residual", "dense", "transformer"])
def test_masks_together_and_one_by_one_agree(name):
    network = make(name).double()
    live, one_by_one = LiveNetwork(network), LiveNetwork(network)
    one_by_one._can_map = False
    together = live.sample(IMAGES_B[:1].double(), masks())
    assert live._can_map
    assert torch.allclose(together, one_by_one.sample(IMAGES_B[:1].double(), masks()), rtol=0, atol=1e-12)


def test_a_range_of_masks_is_that_part_of_more():
    live, image_1 = LiveNetwork(make("lenet")), IMAGES_B[:1]
    part = live.sample(image_1, (range(7, 23), 3, "stratified"))
    assert torch.allclose(part, live.sample(image_1, masks(30, 3))[7:23], atol=1e-6)


def score(logits_SC: Tensor) -> Tensor:
    return logits_SC.log_softmax(-1)[:, 1].mean()


@pytest.mark.parametrize("name", ["mlp", "dense", "residual", "transformer"])
def test_gradients_are_the_slopes_of_the_loop(name):
    """Along a random direction of parameters and image: central differences of 1e-5, exact to about 1e-9."""
    network, image_1 = make(name).double().requires_grad_(), IMAGES_B[:1].double().requires_grad_()
    score(LiveNetwork(network).sample(image_1, masks())).backward()
    generator = torch.Generator().manual_seed(51)
    variables = {"image": image_1, **dict(network.named_parameters())}
    steps = {name: torch.randn(one.shape, generator=generator).double() for name, one in variables.items()}
    slope = sum((one.grad * steps[name]).sum() for name, one in variables.items() if one.grad is not None)
    assert sum(one.grad is not None and bool(one.grad.any()) for one in variables.values()) >= 3
    values = []
    for h in (1e-5, -1e-5):
        moved = copy.deepcopy(network)
        with torch.no_grad():
            for path, parameter in moved.named_parameters():
                parameter.add_(h * steps[path])
            values.append(score(loop(moved, image_1 + h * steps["image"], 12, 5)[0]))
    assert slope.item() == pytest.approx((values[0] - values[1]).item() / 2e-5, rel=1e-6)


def change_weights(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)


def change_statistics(network: nn.Module) -> None:
    for norm in network.norms:
        norm.running_mean.fill_(0.3)


def replace_weights(network: nn.Module) -> None:
    network.head.weight = nn.Parameter(-network.head.weight)


@pytest.mark.parametrize("change", [change_weights, change_statistics, replace_weights])
def test_changes_of_parameters_and_statistics_take_effect(change):
    network, image_1 = make("residual"), IMAGES_B[:1]
    live = LiveNetwork(network)
    before = live.sample(image_1, masks())
    change(network)
    found, expected = live.sample(image_1, masks()), loop(network, image_1, 12, 5)[0]
    assert not torch.allclose(found, before, atol=1e-3)
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())
    assert torch.allclose(live.predict(image_1), copy.deepcopy(network).eval()(image_1), atol=1e-6)


def test_global_random_numbers_are_neither_used_nor_changed():
    live, image_1 = LiveNetwork(make("transformer")), IMAGES_B[:1]
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what is watched
        random.seed(seed)
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        results.append(torch.cat([live.predict(image_1), live.sample(image_1, masks())]))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
        assert random.getstate() == states[2]
    assert torch.equal(*results)


class Small(nn.Module):
    """Dropout of a matrix of features, as a test wants it."""

    def __init__(self, drop) -> None:
        super().__init__()
        self.drop, self.first, self.second = drop, nn.Linear(64, 6), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.drop(self.first(images.flatten(1))))


def doubled_in_place(features: Tensor) -> Tensor:
    return features + functional.dropout(features, 0.5, inplace=True)


def doubled_by_view(features: Tensor) -> Tensor:
    view = features.view(-1, 3, 2)
    torch.dropout_(features, 0.5, True)
    return torch.cat([view.flatten(1)])


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (nn.Identity(), "no dropout is reached in eval mode"),
        (nn.Dropout(0), "no dropout is reached in eval mode"),
        (lambda features: torch.alpha_dropout(features, 0.2, True), "alpha_dropout can't be replaced by a mask"),
        (lambda features: torch.feature_alpha_dropout(features, 0.2, True), "feature_alpha_dropout can't be replaced"),
        (nn.Dropout1d(0.5), "dropout1d of 2 axes takes the images for channels"),
        (doubled_in_place, r"what dropout changes in place is used again: .* or inplace=False"),
        (doubled_by_view, "what dropout changes in place is used again"),
    ],
    ids=["none", "p of 0", "alpha", "alpha of channels", "channels", "in place", "by a view"],
)
def test_dropout_that_masks_cant_replace_is_refused(drop, message):
    live = LiveNetwork(Small(drop))
    with pytest.raises(ValueError, match=message):
        live.sample(IMAGES_B[:1], masks())


def test_dropout_between_layers_of_an_lstm_is_refused():
    network = make("recurrent")
    network.lstm = nn.LSTM(6, 6, num_layers=2, dropout=0.2)
    with pytest.raises(TypeError, match="layer lstm: LSTM can't be masked there: its dropout is between its layers"):
        LiveNetwork(network)


def test_the_shape_of_what_dropout_changed_may_be_asked():
    def drop(features: Tensor) -> Tensor:
        dropped = functional.dropout(features, 0.5, inplace=True)
        return dropped.view(features.shape[0], features.size(1))[:, : features.dim() * 3]

    assert LiveNetwork(Small(drop)).sample(IMAGES_B[:1], masks()).shape == (12, 4)


def test_a_twin_shares_parameters_but_not_its_mode():
    network = make("residual").train()
    twin = eval_twin(network, {"drops.1"})
    assert [name for name, inner in twin.named_modules() if inner.training] == ["drops.1"]
    assert all(inner.training for inner in network.modules())
    for one, other in ((network.parameters, twin.parameters), (network.buffers, twin.buffers)):
        assert all(mine is yours for mine, yours in zip(one(), other(), strict=True))
    other = with_own_buffers(network)
    assert all(mine is yours for mine, yours in zip(network.parameters(), other.parameters(), strict=True))
    for mine, yours in zip(network.buffers(), other.buffers(), strict=True):
        assert mine is not yours
        assert torch.equal(mine, yours)


def test_modules_that_are_shared_stay_shared_in_a_twin():
    shared = nn.Linear(3, 3)
    twin = eval_twin(nn.Sequential(shared, nn.Sequential(shared), nn.ReLU()))
    assert twin[0] is twin[1][0]
    assert twin[0] is not shared


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kind", ["none", "causal", "added", "boolean", "shared heads", "causal, shared heads"])
def test_attention_equals_that_of_torch(scale, kind):
    generator = torch.Generator().manual_seed(52)
    query, key = (torch.randn(2, 4, length, 6, generator=generator).double() for length in (5, 7))
    value, added = (torch.randn(*shape, generator=generator).double() for shape in ((2, 4, 7, 3), (5, 7)))
    options = {"scale": scale, "is_causal": "causal" in kind, "enable_gqa": "shared heads" in kind}
    if options["enable_gqa"]:
        key, value = key[:, :2], value[:, :2]
    options["attn_mask"] = {"added": added, "boolean": added > -1}.get(kind)
    expected = functional.scaled_dot_product_attention(query, key, value, **options)
    assert torch.allclose(attend(lambda weights: weights, query, key, value, **options), expected, atol=1e-12)


PADDING = torch.tensor([[False] * 5, [False, False, True, False, True]])
ATTENTION = {
    "weights": ({}, {"need_weights": True}),
    "no weights": ({}, {"need_weights": False}),
    "biases": ({"add_bias_kv": True, "add_zero_attn": True}, {}),
    "padding": ({}, {"key_padding_mask": PADDING}),
    "mask": ({}, {"attn_mask": torch.ones(5, 5).triu(1).bool(), "need_weights": False}),
    "causal": ({}, {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True, "need_weights": False}),
    "sizes": ({"kdim": 8, "vdim": 8, "bias": False}, {"average_attn_weights": False}),
}


@pytest.mark.parametrize(("options", "given"), ATTENTION.values(), ids=ATTENTION)
def test_attention_modules_meet_their_dropout_once(options, given):
    """With nothing dropped they compute what torch does in eval mode."""
    torch.manual_seed(53)
    module = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True, **options)
    tokens = torch.randn(2, 5, 8)
    seen = []

    def drop(weights: Tensor, p: float, is_channels: bool) -> Tensor:
        seen.append((p, is_channels, weights.shape[-2]))
        return weights

    with DropoutMode(drop), without_fused_attention():
        found, weights = module(tokens, tokens, tokens, **given)
    expected, expected_weights = copy.deepcopy(module).eval()(tokens, tokens, tokens, **given)
    assert seen == [(0.4, False, 5)]
    assert torch.allclose(found, expected, atol=1e-6)
    assert (weights is None) == (expected_weights is None)
    assert weights is None or torch.allclose(weights, expected_weights, atol=1e-6)


@pytest.mark.parametrize("before", [True, False])
def test_fused_attention_is_allowed_again_afterwards(before, monkeypatch):
    allowed = [before]
    monkeypatch.setattr("torch.backends.mha.get_fastpath_enabled", lambda: allowed[-1])
    monkeypatch.setattr("torch.backends.mha.set_fastpath_enabled", allowed.append)
    with pytest.raises(KeyError), without_fused_attention():
        {}["an error"]
    assert allowed == [before, False, before]
