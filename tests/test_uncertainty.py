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


@given(draws, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_passes_is_of_no_effect_and_that_of_images_is_kept(probs_SBC, random):
    found = summarize(probs_SBC)
    passes, images = (random.sample(range(n), n) for n in probs_SBC.shape[:2])
    shuffled = summarize(probs_SBC[passes][:, images])
    for name, value in vars(found).items():
        assert torch.allclose(getattr(shuffled, name), value[images], atol=1e-7), name


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_certain_passes_have_no_expected_entropy_and_so_all_of_it_is_mutual_information(classes_SB):
    """Each pass is sure of a class: 0 log 0 is 0, and the entropy is that of how often each class is named."""
    probs_SBC = np.eye(5)[np.array(classes_SB)]
    found = summarize(probs_SBC)
    assert found.expected_entropy.tolist() == [0, 0, 0]
    assert np.allclose(found.mutual_information, stats.entropy(probs_SBC.sum(axis=0), axis=-1))
    mean_BC = probs_SBC.mean(axis=0)
    assert np.allclose(found.variance, mean_BC * (1 - mean_BC))


def test_three_passes_give_the_numbers_of_the_pencil():
    """Two classes, passes (1/2, 1/2), (1, 0) and (3/4, 1/4): mean (3/4, 1/4) and deviations 1/4, 1/4 and 0."""
    found = summarize(torch.tensor([[0.5, 0.5], [1, 0], [0.75, 0.25]])[:, None])
    of_quarters = 2 * math.log(2) - 0.75 * math.log(3)
    assert found.mean.tolist() == [[0.75, 0.25]]
    assert found.variance[0].tolist() == pytest.approx([1 / 24] * 2)
    assert found.standard_error[0].tolist() == pytest.approx([1 / 48**0.5] * 2)
    assert found.predictive_entropy.item() == pytest.approx(of_quarters)
    assert found.expected_entropy.item() == pytest.approx((math.log(2) + of_quarters) / 3)
    assert found.mutual_information.item() == pytest.approx((2 * of_quarters - math.log(2)) / 3)


def test_opposite_certain_passes_are_pure_disagreement():
    found = summarize(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert found.mean.tolist() == [[0.5, 0.5]]
    assert found.variance.tolist() == [[0.25, 0.25]]
    assert found.standard_error.tolist() == [[0.5, 0.5]]
    assert found.expected_entropy.tolist() == [0]
    assert found.mutual_information.item() == pytest.approx(math.log(2))


@given(draws)
@settings(max_examples=40, deadline=None)
def test_equal_passes_have_no_epistemic_part(probs_SBC):
    pass_BC = torch.tensor(probs_SBC[0])
    found = summarize(pass_BC.expand(len(probs_SBC), -1, -1))
    assert torch.allclose(found.mean, pass_BC)
    assert ((found.mutual_information >= 0) & (found.mutual_information <= 1e-14)).all()
    assert found.variance.max() <= 1e-30
    assert found.standard_error.max() <= 1e-15
    assert np.allclose(found.predictive_entropy, stats.entropy(pass_BC, axis=-1))


def test_arrays_and_tensors_of_any_precision_give_the_same_float64_numbers():
    probs_SBC = np.random.default_rng(4).dirichlet(np.ones(6), size=(8, 3)).astype(np.float32)
    array, tensor = summarize(probs_SBC), summarize(torch.tensor(probs_SBC))
    for name, value in vars(array).items():
        assert value.dtype == torch.float64
        assert torch.equal(value, getattr(tensor, name))


@pytest.mark.parametrize("samples", [2, 8, 32, 128])
def test_the_standard_error_is_the_spread_of_repeated_means_and_shrinks_with_the_root_of_their_number(samples):
    """4000 repetitions as so many images; a Dirichlet's variance is m (1 - m) / (a + 1), a its parameters' sum."""
    probs_SBC = np.random.default_rng(5).dirichlet([2.0, 1.0, 0.5], size=(samples, 4000))
    found = summarize(probs_SBC)
    spread_C = found.mean.numpy().std(axis=0)
    reported_C = np.sqrt((found.standard_error.numpy() ** 2).mean(axis=0))
    m = np.array([2.0, 1.0, 0.5]) / 3.5
    assert np.allclose(reported_C, spread_C, rtol=0.06)
    assert np.allclose(reported_C, np.sqrt(m * (1 - m) / 4.5 / samples), rtol=0.06)


def test_the_entropy_of_certainty_is_zero_and_of_indifference_the_logarithm():
    found = entropy(torch.tensor([[[1.0, 0, 0, 0]], [[0.25, 0.25, 0.25, 0.25]]]))
    assert found.shape == (2, 1)
    assert found.flatten().tolist() == [0, pytest.approx(math.log(4))]


def test_no_images_give_empty_quantities():
    found = summarize(torch.empty(3, 0, 4))
    assert found.mean.shape == found.variance.shape == found.standard_error.shape == (0, 4)
    assert found.predictive_entropy.shape == found.expected_entropy.shape == found.mutual_information.shape == (0,)


def test_rows_that_sum_to_one_but_for_rounding_are_taken():
    probs_SBC = torch.randn(5, 3, 10, generator=torch.Generator().manual_seed(2)).softmax(dim=-1).half()
    assert summarize(probs_SBC).mean.sum(dim=-1).tolist() == pytest.approx([1] * 3, abs=1e-3)


@pytest.mark.parametrize(
    ("probs_SBC", "message"),
    [
        (torch.full((2, 3, 2, 2), 0.5), r"axes \(samples, images, classes\), got shape \(2, 3, 2, 2\)"),
        (torch.full((0, 2, 2), 0.5), "at least 2 passes, got 0"),
        (torch.tensor([torch.inf, 0]).expand(2, 1, 2), "must be a distribution"),
        (torch.zeros(2, 1, 2), "must be a distribution"),
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
