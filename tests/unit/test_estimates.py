import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from model import MomentPropagation, MonteCarloDropout, entropy, summarize
from training.data import Images
from training.estimates import Estimators, combine_members, estimate

CONSOLE = Console(quiet=True)


def make_network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 12), nn.ReLU(), nn.Dropout(0.4)]
    network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(12, 4)).requires_grad_(requires_grad=False)
    network[-1].weight *= 5
    return network


@pytest.fixture
def images() -> Images:
    torch.manual_seed(71)
    return Images(torch.randint(0, 256, (7, 4, 3), dtype=torch.uint8), torch.arange(7) % 4)


def test_estimates_are_those_of_the_library(images, monkeypatch):
    monkeypatch.setattr("training.estimates._IMAGES_AT_ONCE", 3)  # 7 images: two full parts and a rest
    network = make_network(70)
    found = estimate(Estimators.of_chain(network), images, samples=(10, 30), seed=3, console=CONSOLE)
    assert list(found) == [("eval", 0), ("masks", 10), ("masks", 30), ("moments", 0)]
    mc = MonteCarloDropout(network)
    for samples in (10, 30):
        expected = summarize(mc.sample(images.inputs_B, samples=samples, seed=3))
        row = found["masks", samples]
        assert np.allclose(row["probs_BC"], expected.mean, atol=1e-6)
        assert np.allclose(row["information_B"], expected.mutual_information, atol=1e-6)
    assert np.allclose(found["eval", 0]["probs_BC"], mc.predict(images.inputs_B), atol=1e-7)
    moments = MomentPropagation(network).predict(images.inputs_B)
    assert np.allclose(found["moments", 0]["probs_BC"], moments.mean, atol=1e-7)
    assert np.allclose(found["moments", 0]["information_B"], moments.mutual_information, atol=1e-7)


def test_an_ensemble_is_all_its_sub_networks_together(images):
    """Its masks' information is that of one large sample: entropy of the mean, less mean entropy."""
    networks = [make_network(seed) for seed in (72, 73, 74)]
    found = combine_members(
        [estimate(Estimators.of_chain(one), images, samples=(2000,), seed=3, console=CONSOLE) for one in networks]
    )
    probs_SBC = torch.cat(
        [MonteCarloDropout(one).sample(images.inputs_B, samples=2000, seed=3).double() for one in networks]
    )
    mean_BC = probs_SBC.mean(dim=0)
    masks = found["masks", 2000]
    assert np.allclose(masks["probs_BC"], mean_BC, atol=1e-6)
    assert masks["information_B"] == pytest.approx(
        (entropy(mean_BC) - entropy(probs_SBC).mean(dim=0)).numpy(), abs=1e-3
    )
    eval_MBC = torch.stack([MonteCarloDropout(one).predict(images.inputs_B).double() for one in networks])
    row = found["eval", 0]
    assert np.allclose(row["probs_BC"], eval_MBC.mean(dim=0), atol=1e-7)
    disagreement_B = entropy(eval_MBC.mean(dim=0)) - entropy(eval_MBC).mean(dim=0)
    assert row["information_B"] == pytest.approx(disagreement_B.numpy(), abs=1e-6)
    assert (row["information_B"] > 1e-3).all()


def test_an_ensemble_of_one_is_that_one(images):
    one = estimate(Estimators.of_chain(make_network(75)), images, samples=(10,), seed=3, console=CONSOLE)
    for key, row in combine_members([one]).items():
        for name, values in row.items():
            assert np.allclose(values, one[key][name], atol=1e-12)
