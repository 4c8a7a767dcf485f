import pytest
import torch
from torch import nn

from model import MLPConfig, build_mlp, dropout_layer


def from_scratch(network: nn.Sequential, images_B: torch.Tensor, dropout: tuple[float, ...]) -> torch.Tensor:
    """The chapter's network by hand: the same weights, dropout from its definition."""
    hidden = images_B.flatten(1)
    for number, p in enumerate(dropout, start=1):
        linear = getattr(network, f"hidden{number}")
        hidden = dropout_layer(torch.clamp(hidden @ linear.weight.T + linear.bias, min=0), p)
    return hidden @ network.logits.weight.T + network.logits.bias


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(3)
    return build_mlp(MLPConfig(hidden=(40, 30), dropout=(0.3, 0.6), classes=4, image=(1, 5, 5))).requires_grad_(False)


IMAGES_B = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(9))


def test_the_defaults_are_the_chapters():
    layers = list(build_mlp(MLPConfig()))
    assert [type(layer) for layer in layers] == [
        nn.Flatten,
        *[nn.Linear, nn.ReLU, nn.Dropout] * 2,
        nn.Linear,
    ]
    assert [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)] == [
        (784, 256),
        (256, 256),
        (256, 10),
    ]
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.2, 0.5]


def test_the_layers_and_so_the_tensors_have_names(network):
    assert [name for name, _ in network.named_children()] == [
        "flatten",
        *["hidden1", "relu1", "dropout1"],
        *["hidden2", "relu2", "dropout2"],
        "logits",
    ]
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == {
        "hidden1.weight": (40, 25), "hidden1.bias": (40,),
        "hidden2.weight": (30, 40), "hidden2.bias": (30,),
        "logits.weight": (4, 30), "logits.bias": (4,),
    }  # fmt: skip


@pytest.mark.parametrize("image", [(7,), (2, 3, 4)])
def test_an_image_of_any_shape_gives_logits(image):
    network = build_mlp(MLPConfig(image=image, hidden=(6,), dropout=(0.1,), classes=3))
    assert network(torch.rand(5, *image)).shape == (5, 3)


def test_no_hidden_layer_is_softmax_regression():
    network = build_mlp(MLPConfig(image=(4, 2), hidden=(), dropout=(), classes=3))
    assert [type(layer) for layer in network] == [nn.Flatten, nn.Linear]
    assert network(torch.rand(5, 4, 2)).shape == (5, 3)


def test_without_dropout_the_layers_and_the_hand_written_network_agree(network):
    assert torch.allclose(network.eval()(IMAGES_B), from_scratch(network, IMAGES_B, (0, 0)), atol=1e-6)


def test_with_dropout_they_agree_in_distribution(network):
    """Means of n passes differ by less than 5 standard errors, variances by less than 5 of theirs (kurtosis < 4)."""
    torch.manual_seed(12)
    n = 5000
    network.train()
    layers, hand = (
        torch.stack([forward(IMAGES_B) for _ in range(n)]).double()
        for forward in (network, lambda images_B: from_scratch(network, images_B, (0.3, 0.6)))
    )
    variance = (layers.var(0) + hand.var(0)) / 2
    assert ((layers.mean(0) - hand.mean(0)).abs() <= 5 * (2 * variance / n).sqrt()).all()
    assert ((layers.var(0) / hand.var(0) - 1).abs() <= 5 * (2 * 3 / n) ** 0.5).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": (256,)}, "one dropout probability for each hidden layer"),
        ({"dropout": (0.2, 0.5, 0.5)}, "one dropout probability for each hidden layer"),
        ({"dropout": (0.2, 1.5)}, r"dropout probabilities must be in \[0, 1\], got \(0\.2, 1\.5\)"),
        ({"dropout": (-0.1, 0.5)}, r"dropout probabilities must be in \[0, 1\]"),
        ({"dropout": (0.2, float("nan"))}, r"dropout probabilities must be in \[0, 1\]"),
        ({"hidden": (256, 0)}, "sizes must be whole numbers of at least 1"),
        ({"hidden": (256, 2.5)}, "sizes must be whole numbers of at least 1"),
        ({"hidden": (256, True)}, "sizes must be whole numbers of at least 1"),
        ({"classes": 0}, "sizes must be whole numbers of at least 1"),
        ({"classes": -1}, "sizes must be whole numbers of at least 1"),
        ({"image": (0, 28)}, "sizes must be whole numbers of at least 1"),
    ],
)
def test_invalid_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MLPConfig(**fields)
