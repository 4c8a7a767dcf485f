import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from model import entropy, summarize

draws = st.builds(
    lambda S, B, C, seed, sharp: np.random.default_rng(seed).dirichlet(np.full(C, sharp), size=(S, B)),
    st.integers(2, 30), st.integers(1, 4), st.integers(2, 12), st.integers(0, 2**32), st.floats(0.05, 20),
)  # fmt: skip


@given(draws)
@settings(max_examples=60, deadline=None)
def test_every_quantity_equals_a_second_implementation(probs_SBC):
    found = summarize(probs_SBC)
    mean_BC = probs_SBC.mean(axis=0)
    assert np.allclose(found.mean, mean_BC)
    assert np.allclose(found.variance, np.var(probs_SBC, axis=0))
    assert np.allclose(found.standard_error, stats.sem(probs_SBC, axis=0))
    assert np.allclose(found.predictive_entropy, stats.entropy(mean_BC, axis=-1))
    assert np.allclose(found.expected_entropy, stats.entropy(probs_SBC, axis=-1).mean(axis=0))
    # I = E[KL(pass || mean)], which is another formula than the difference of entropies
    divergence = stats.entropy(probs_SBC, np.broadcast_to(mean_BC, probs_SBC.shape), axis=-1).mean(axis=0)
    assert np.allclose(found.mutual_information, divergence, atol=1e-9)


@given(draws)
@settings(max_examples=60, deadline=None)
def test_total_is_aleatoric_plus_epistemic_and_each_is_bounded(probs_SBC):
    found = summarize(probs_SBC)
    assert torch.allclose(found.predictive_entropy, found.expected_entropy + found.mutual_information)
    assert (found.mutual_information >= 0).all()
    assert (found.predictive_entropy <= math.log(probs_SBC.shape[-1]) + 1e-12).all()
    assert (found.variance <= 0.25 + 1e-12).all()


def test_opposite_certain_passes_are_pure_disagreement():
    found = summarize(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert found.mean.tolist() == [[0.5, 0.5]]
    assert found.variance.tolist() == [[0.25, 0.25]]
    assert found.standard_error.tolist() == [[0.5, 0.5]]
    assert found.expected_entropy.tolist() == [0]
    assert found.mutual_information.item() == pytest.approx(math.log(2))


def test_equal_passes_have_no_epistemic_part():
    found = summarize(torch.tensor([[0.7, 0.2, 0.1]]).expand(5, 1, 3))
    assert found.mutual_information.item() == pytest.approx(0, abs=1e-15)
    assert found.variance.max() == 0
    assert found.predictive_entropy.item() == pytest.approx(-sum(p * math.log(p) for p in (0.7, 0.2, 0.1)))


def test_arrays_and_tensors_of_any_precision_give_the_same_float64_numbers():
    probs_SBC = np.random.default_rng(4).dirichlet(np.ones(6), size=(8, 3)).astype(np.float32)
    array, tensor = summarize(probs_SBC), summarize(torch.tensor(probs_SBC))
    for name, value in vars(array).items():
        assert value.dtype == torch.float64
        assert torch.equal(value, getattr(tensor, name))


def test_the_standard_error_is_the_spread_of_repeated_means():
    probs_RSC = np.random.default_rng(5).dirichlet([2.0, 1.0, 0.5], size=(4000, 50))
    spread = probs_RSC.mean(axis=1).std(axis=0)
    reported = np.sqrt(
        np.mean([summarize(probs_SC[:, None]).standard_error[0].numpy() ** 2 for probs_SC in probs_RSC], 0)
    )
    assert np.allclose(reported, spread, rtol=0.05)


def test_the_entropy_of_certainty_is_zero():
    assert entropy(torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [0]


@pytest.mark.parametrize(
    ("probs_SBC", "message"),
    [
        (torch.full((3, 2), 0.5), r"axes \(samples, images, classes\), got shape \(3, 2\)"),
        (torch.full((1, 2, 2), 0.5), "at least 2 passes, got 1: one pass has no spread"),
        (torch.full((2, 1, 2), 0.6), "must be a distribution"),
        (torch.tensor([1.5, -0.5]).expand(2, 1, 2), "must be a distribution"),
        (torch.full((2, 1, 2), torch.nan), "must be a distribution"),
        (torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1)), "must be a distribution"),
    ],
)
def test_what_is_no_set_of_passes_is_refused(probs_SBC, message):
    with pytest.raises(ValueError, match=message):
        summarize(probs_SBC)
