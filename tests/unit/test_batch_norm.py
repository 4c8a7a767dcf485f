import copy

import pytest
import torch
from torch import Tensor, nn

from model import MLPConfig, build_mlp
from training.batch_norm import add_batch_norm, fold_batch_norm

CONFIG = MLPConfig(hidden=(12, 7), dropout=(0.2, 0.5))


@pytest.fixture
def normed() -> nn.Sequential:
    """A network whose batch norms have neither weights nor statistics at their defaults."""
    torch.manual_seed(3)
    network = add_batch_norm(build_mlp(CONFIG))
    for norm in network:
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    for _ in range(20):
        network(images(64))
    return network


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 28, 28)


def test_each_relu_gets_what_its_linear_layer_gives_normalized_over_the_batch() -> None:
    torch.manual_seed(1)
    network = build_mlp(CONFIG)
    normed = add_batch_norm(network).train()
    inputs_B = images(30)
    hidden_BH = network[:2](inputs_B)
    expected_BH = (hidden_BH - hidden_BH.mean(dim=0)) / (hidden_BH.var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(normed[:3](inputs_B), expected_BH, rtol=1e-3, atol=1e-4)
    assert [name for name, _ in normed.named_children()] == [
        "flatten", "hidden1", "norm_relu1", "relu1", "dropout1", "hidden2", "norm_relu2", "relu2", "dropout2", "logits",
    ]  # fmt: skip


def test_the_folded_network_has_the_mlps_layers_and_the_outputs_of_eval_mode(normed: nn.Sequential) -> None:
    folded = fold_batch_norm(normed)
    assert folded.state_dict().keys() == build_mlp(CONFIG).state_dict().keys()
    inputs_B = images(30)
    torch.testing.assert_close(folded(inputs_B), normed.eval()(inputs_B), rtol=1e-4, atol=1e-5)


def test_folding_leaves_the_network_as_it_is(normed: nn.Sequential) -> None:
    before = copy.deepcopy(normed.state_dict())
    fold_batch_norm(normed)
    assert normed.training
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())
