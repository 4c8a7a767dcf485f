import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from model import MonteCarloDropout, Uncertainty, entropy, load_artifact
from model import summarize as summarize_any

DESIGNS = ["stratified", "independent"]

draws = st.builds(
    lambda S, B, C, seed, sharp: np.random.default_rng(seed).dirichlet(np.full(C, sharp), size=(S, B)),
    st.integers(2, 50), st.integers(1, 4), st.integers(2, 12), st.integers(0, 2**32), st.floats(0.05, 20),
)  # fmt: skip


designs = st.sampled_from(DESIGNS)


def summarize(probs_SBC, **options) -> Uncertainty:
    """As tensors, whatever the passes are."""
    return summarize_any(torch.as_tensor(probs_SBC), **options)


def normal_odds(center: float, spread: float, passes: int, images: int) -> np.ndarray:
    """Independent passes of two classes whose log-odds are normal."""
    odds_SB = np.random.default_rng(6).normal(center, spread, size=(passes, images))
    return np.stack([expit(odds_SB), expit(-odds_SB)], axis=-1)


def moments_of_normal_odds(center: float, spread: float) -> tuple[float, float]:
    """Mean and standard deviation of the first class, by quadrature."""
    z = np.linspace(-9, 9, 3001)
    density, probs = stats.norm.pdf(z) / stats.norm.pdf(z).sum(), expit(center + spread * z)
    mean = density @ probs
    return mean, math.sqrt(density @ (probs - mean) ** 2)


def variance_of_mean(probs_SBC: np.ndarray, masks: str) -> np.ndarray:
    """Squared standard error of passes, or of what whole blocks of ten deviate from the mean."""
    passes = len(probs_SBC)
    if masks == "independent" or passes < 20:
        return stats.sem(probs_SBC, axis=0) ** 2
    blocks = np.array([probs_SBC[first : first + 10].mean(axis=0) for first in range(0, passes - 9, 10)])
    if passes % 10 == 0:
        return stats.sem(blocks, axis=0) ** 2
    return ((blocks - probs_SBC.mean(axis=0)) ** 2).sum(axis=0) / (len(blocks) * (len(blocks) - 1))


def variance_from_log_odds(probs_S: np.ndarray, masks: str) -> float:
    """(V - L + r L) / S of one class, as docs/method.md derives it."""
    passes = len(probs_S)
    odds_S = np.log(probs_S + 1e-30) - np.log(np.maximum(1 - probs_S, 1e-16))
    towards_half_S = (odds_S - odds_S.mean()) * (1 if probs_S.mean() < 0.5 else -1)
    scale = (math.sqrt(math.pi / 2) * (np.maximum(towards_half_S, 0) ** 3).mean()) ** (1 / 3)
    z = np.linspace(-4.5, 4.5, 19)
    weights = stats.norm.pdf(z) / stats.norm.pdf(z).sum()
    probs_Z = expit(odds_S.mean() + scale * z)
    variance = weights @ (probs_Z - weights @ probs_Z) ** 2
    linear = (weights @ (z * probs_Z)) ** 2 / (weights @ z**2)
    independent = odds_S.var() / (passes - 1)
    ratio = min(variance_of_mean(odds_S[:, None], masks)[0] / max(independent, 1e-30), 1)
    return max(variance - linear + ratio * linear, 0) / passes


def uncorrected(found: Uncertainty) -> torch.Tensor:
    return found.predictive_entropy - found.expected_entropy


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("passes", [2, 7, 19, 20, 30, 47, 100])
@pytest.mark.parametrize("sharp", [0.3, 1, 20])
def test_standard_error_is_the_larger_of_both_formulas(sharp, passes, masks):
    probs_SBC = np.random.default_rng(passes).dirichlet(np.full(4, sharp), size=(passes, 3))
    from_odds_BC = [[variance_from_log_odds(probs_SBC[:, b, c], masks) for c in range(4)] for b in range(3)]
    expected_BC = np.sqrt(np.maximum(variance_of_mean(probs_SBC, masks), from_odds_BC))
    assert np.allclose(summarize(probs_SBC, masks=masks).standard_error, expected_BC, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("far", [-40, 20])
def test_standard_error_is_exact_beside_one_far_pass(far, masks):
    """The cubes of the deviations towards one half are a small difference of large sums."""
    odds_S = np.random.default_rng(8).normal(-4, 0.01, size=1000)
    odds_S[500] = far
    probs_SBC = np.stack([expit(odds_S), expit(-odds_S)], axis=-1)[:, None]
    expected = variance_from_log_odds(probs_SBC[:, 0, 0], masks)
    assert expected > variance_of_mean(probs_SBC, masks)[0, 0]
    found = summarize(probs_SBC, masks=masks).standard_error[0, 0].item()
    assert found**2 == pytest.approx(expected, rel=1e-7)


@given(draws, designs)
@settings(max_examples=100, deadline=None)
def test_every_quantity_equals_a_second_implementation(probs_SBC, masks):
    found = summarize(probs_SBC, masks=masks)
    mean_BC, of_mean_BC = probs_SBC.mean(axis=0), variance_of_mean(probs_SBC, masks)
    assert np.allclose(found.mean, mean_BC)
    assert np.allclose(found.variance, np.var(probs_SBC, axis=0))
    assert np.allclose(found.predictive_entropy, stats.entropy(mean_BC, axis=-1))
    assert np.allclose(found.expected_entropy, stats.entropy(probs_SBC, axis=-1).mean(axis=0))
    # I = E[KL(pass || mean)], which is another formula than the difference of entropies
    relative_BC = np.divide(of_mean_BC, mean_BC, out=np.zeros_like(mean_BC), where=mean_BC > 0)
    divergence = stats.entropy(probs_SBC, np.broadcast_to(mean_BC, probs_SBC.shape), axis=-1).mean(axis=0)
    assert np.allclose(found.mutual_information, divergence + relative_BC.sum(axis=-1) / 2, atol=1e-9)
    assert (found.standard_error.numpy() >= np.sqrt(of_mean_BC) * (1 - 1e-9)).all()


@given(draws, designs)
@settings(max_examples=60, deadline=None)
def test_the_parts_of_the_entropy_and_all_else_are_bounded(probs_SBC, masks):
    found = summarize(probs_SBC, masks=masks)
    assert (found.mutual_information >= uncorrected(found)).all()
    assert (found.mutual_information >= 0).all()
    assert (found.expected_entropy <= found.predictive_entropy + 1e-12).all()
    assert (found.predictive_entropy <= math.log(probs_SBC.shape[-1]) + 1e-12).all()
    assert (found.variance <= 0.25 + 1e-12).all()
    assert (found.standard_error <= 0.5 + 1e-12).all()  # that of two passes which are sure of different classes


@given(draws, designs, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_within_blocks_has_no_effect(probs_SBC, masks, random):
    order = list(range(len(probs_SBC)))
    if masks == "independent" or len(order) < 20:
        random.shuffle(order)
    else:
        *blocks, rest = [random.sample(order[n : n + 10], len(order[n : n + 10])) for n in range(0, len(order) + 1, 10)]
        order = [*itertools.chain(*random.sample(blocks, len(blocks))), *rest]
    images = random.sample(range(probs_SBC.shape[1]), probs_SBC.shape[1])
    found = summarize(probs_SBC, masks=masks)
    shuffled = summarize(probs_SBC[order][:, images], masks=masks)
    for name, value in vars(found).items():
        assert torch.allclose(getattr(shuffled, name), value[images], atol=1e-7), name


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("samples", [2, 20, 1000])
def test_summary_of_an_image_is_independent_of_its_batch(masks, samples):
    images = 2 * 2**18 // (3 * samples) + 1
    probs_SBC = np.random.default_rng(7).dirichlet(np.ones(3) / 3, size=(samples, min(images, 20_000)))
    together = summarize(probs_SBC, masks=masks)
    for b in [0, probs_SBC.shape[1] // 2, probs_SBC.shape[1] - 1]:
        for name, value in vars(summarize(probs_SBC[:, b : b + 1], masks=masks)).items():
            assert torch.allclose(value[0], getattr(together, name)[b], rtol=1e-9, atol=1e-12), name


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_certain_passes_have_mutual_information_only(classes_SB):
    """Each pass is sure of a class: 0 log 0 is 0, and the entropy is that of how often each class is named."""
    probs_SBC = np.eye(5)[np.array(classes_SB)]
    found = summarize(probs_SBC)
    assert found.expected_entropy.tolist() == [0, 0, 0]
    assert np.allclose(uncorrected(found), stats.entropy(probs_SBC.sum(axis=0), axis=-1))
    mean_BC = probs_SBC.mean(axis=0)
    assert np.allclose(found.variance, mean_BC * (1 - mean_BC))


def test_three_passes_give_the_numbers_of_the_pencil():
    """Two classes, passes (1/2, 1/2), (1, 0) and (3/4, 1/4): mean (3/4, 1/4) and deviations 1/4, 1/4 and 0.

    The variance of the mean is 1/48, and so the correction 1/48 (2/3 + 2) = 1/18.
    """
    found = summarize(torch.tensor([[0.5, 0.5], [1, 0], [0.75, 0.25]])[:, None])
    of_quarters = 2 * math.log(2) - 0.75 * math.log(3)
    assert found.mean.tolist() == [[0.75, 0.25]]
    assert found.variance[0].tolist() == pytest.approx([1 / 24] * 2)
    assert (found.standard_error >= 1 / 48**0.5).all()
    assert found.predictive_entropy.item() == pytest.approx(of_quarters)
    assert found.expected_entropy.item() == pytest.approx((math.log(2) + of_quarters) / 3)
    assert found.mutual_information.item() == pytest.approx((2 * of_quarters - math.log(2)) / 3 + 1 / 18)


def test_opposite_certain_passes_are_pure_disagreement():
    found = summarize(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert found.mean.tolist() == [[0.5, 0.5]]
    assert found.variance.tolist() == [[0.25, 0.25]]
    assert found.standard_error.tolist() == [[0.5, 0.5]]
    assert found.expected_entropy.tolist() == [0]
    assert uncorrected(found).item() == pytest.approx(math.log(2))
    assert found.mutual_information.item() == pytest.approx(math.log(2) + 1 / 2)  # v = 1/4, mean 1/2, two classes


@given(draws)
@settings(max_examples=40, deadline=None)
def test_equal_passes_have_no_epistemic_part(probs_SBC):
    pass_BC = torch.tensor(probs_SBC[0])
    found = summarize(pass_BC.expand(len(probs_SBC), -1, -1))
    assert torch.allclose(found.mean, pass_BC)
    assert ((found.mutual_information >= 0) & (found.mutual_information <= 1e-14)).all()
    assert found.variance.max() <= 1e-30
    assert found.standard_error.max() <= 1e-8  # whose square is a float64's rounding
    assert np.allclose(found.predictive_entropy, stats.entropy(pass_BC, axis=-1))


def test_arrays_and_tensors_give_the_same_of_their_kind():
    probs_SBC = np.random.default_rng(4).dirichlet(np.ones(6), size=(8, 3)).astype(np.float32)
    array, tensor = summarize_any(probs_SBC), summarize_any(torch.tensor(probs_SBC, requires_grad=True))
    for name, value in vars(array).items():
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.float64
        assert np.array_equal(value, getattr(tensor, name).numpy())
    assert np.allclose(entropy(probs_SBC), entropy(torch.tensor(probs_SBC)), rtol=1e-6)


@pytest.mark.parametrize("masks", DESIGNS)
def test_float32_input_agrees_down_to_the_smallest_probabilities(masks):
    logits_SBC = 6 * torch.randn(60, 50, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    double = summarize(logits_SBC.softmax(dim=-1), masks=masks)
    single = summarize(logits_SBC.float().softmax(dim=-1), masks=masks)
    for name, value in vars(double).items():
        assert torch.allclose(getattr(single, name), value, rtol=0.01, atol=1e-6), name


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("passes", [2, 20, 45])
@pytest.mark.parametrize("smallest", [0, 1e-45, 1e-38, 1e-20])
def test_probabilities_at_the_ends_of_single_precision_give_finite_numbers(masks, passes, smallest):
    """Sure of one class for all passes, of another now and then, and of each as often."""
    named_SB = np.stack([np.zeros(passes), np.arange(passes) % 10 == 1, np.arange(passes) % 3], axis=1).astype(int)
    probs_SBC = np.maximum(np.eye(4, dtype=np.float32)[named_SB], np.float32(smallest))
    found = summarize(probs_SBC, masks=masks)
    for name, value in vars(found).items():
        assert value.isfinite().all(), name
        assert (value >= -1e-12).all(), name
    assert found.mutual_information[0] < 1e-12


@pytest.mark.parametrize("samples", [2, 8, 32, 128])
def test_standard_error_covers_repeated_means_and_shrinks_with_samples(samples):
    """4000 repetitions as so many images; a Dirichlet's variance is m (1 - m) / (a + 1), a its parameters' sum."""
    probs_SBC = np.random.default_rng(5).dirichlet([2.0, 1.0, 0.5], size=(samples, 4000))
    found = summarize(probs_SBC, masks="independent")
    reported_C = np.sqrt((found.standard_error.numpy() ** 2).mean(axis=0))
    m = np.array([2.0, 1.0, 0.5]) / 3.5
    true_C = np.sqrt(m * (1 - m) / 4.5 / samples)
    assert np.allclose(found.mean.numpy().std(axis=0), true_C, rtol=0.06)
    assert (reported_C >= 0.97 * true_C).all()
    assert (reported_C <= 1.25 * true_C).all()


@pytest.mark.parametrize("center", [-6, -4, -2, 0, 3])
@pytest.mark.parametrize("spread", [0.5, 1, 2])
def test_standard_error_is_right_for_normal_log_odds(center, spread):
    """2000 repetitions of 100 passes: within 10 % on average (20 % in the root mean square), and 90 to 98 % covered.

    Of 2000, the share covered has a standard error of 0.5 %.
    """
    found = summarize(normal_odds(center, spread, 100, 2000), masks="independent")
    mean, deviation = moments_of_normal_odds(center, spread)
    ratio = found.standard_error.numpy() / (deviation / 10)
    assert np.abs(ratio.mean(axis=0) - 1).max() <= 0.1
    assert np.abs(np.sqrt((ratio**2).mean(axis=0)) - 1).max() <= 0.2
    covered = np.abs(found.mean.numpy()[:, 0] - mean) <= 1.96 * found.standard_error.numpy()[:, 0]
    assert 0.9 <= covered.mean() <= 0.98


def test_standard_error_includes_rare_masks_absent_from_the_passes():
    """For an improbable class the plain interval covers far less than it says, and the reported one nearly that."""
    probs_SBC = normal_odds(-9, 2, 100, 2000)
    mean, _ = moments_of_normal_odds(-9, 2)
    found = summarize(probs_SBC, masks="independent")
    off_B = np.abs(found.mean.numpy()[:, 0] - mean)
    assert (off_B <= 1.96 * stats.sem(probs_SBC, axis=0)[:, 0]).mean() < 0.8
    assert (off_B <= 1.96 * found.standard_error.numpy()[:, 0]).mean() > 0.88


def test_standard_error_is_plain_where_log_odds_give_less():
    """One pass in fifty is low, which spreads no log-odds on the side of 1/2."""
    low = np.arange(100) % 50 == 49
    probs_SBC = np.stack([np.where(low, 0.01, 0.45), np.where(low, 0.99, 0.55)], axis=-1)[:, None]
    for masks in DESIGNS:
        expected = np.sqrt(variance_of_mean(probs_SBC, masks))
        assert np.allclose(summarize(probs_SBC, masks=masks).standard_error, expected, rtol=1e-12)


@pytest.fixture(scope="module", params=DESIGNS)
def many(request, fashion) -> tuple[torch.Tensor, str]:
    """What 20,000 masks of the embedded network say of 20 test images, and their design."""
    images_B = fashion.test.images_B[:200:10].view(-1, 1, 28, 28) / 255
    mc = MonteCarloDropout(load_artifact().network)
    return mc.sample(images_B, samples=20_000, seed=999, masks=request.param), request.param


@pytest.mark.parametrize("samples", [20, 100])
def test_correction_removes_most_bias_of_the_mutual_information(many, samples):
    """Against all the masks that the few are taken from, so that the expected entropies' noise cancels."""
    probs_SBC, masks = many
    reference = summarize(probs_SBC, masks=masks)
    runs = [summarize(few_SBC, masks=masks) for few_SBC in probs_SBC.split(samples)]
    missed_B = uncorrected(reference) - torch.stack([uncorrected(found) for found in runs]).mean(dim=0)
    left_B = reference.mutual_information - torch.stack([found.mutual_information for found in runs]).mean(dim=0)
    assert (missed_B > 0).all()
    assert (left_B.abs() < missed_B).all()
    assert left_B.norm() < missed_B.norm() / 2


def test_standard_error_of_embedded_network_covers_the_true_mean(many):
    """Of ten blocks the squared error has 9 degrees of freedom, whose 1.96 covers 92 % at worst."""
    probs_SBC, masks = many
    mean_BC = summarize(probs_SBC, masks=masks).mean
    runs = [summarize(few_SBC, masks=masks) for few_SBC in probs_SBC.split(100)]
    off = torch.stack([found.mean - mean_BC for found in runs])
    error = torch.stack([found.standard_error for found in runs])
    assert 0.92 <= (off.abs() <= 1.96 * error).double().mean() <= 0.99
    assert 0.9 <= (error.norm() / off.norm()) <= 1.3


def test_entropy_is_zero_for_certainty_and_maximal_for_uniform():
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


def test_every_row_may_be_off_by_the_tolerance():
    rows_SB = np.full((30, 4), 1.0009)
    assert np.allclose(summarize(rows_SB[..., None] * [0.3, 0.7]).mean, [0.30027, 0.70063])
    for wrong in (1.0011, 0.9989):
        rows_SB[17, 2] = wrong
        with pytest.raises(ValueError, match="must be a distribution"):
            summarize(rows_SB[..., None] * [0.3, 0.7])


@pytest.mark.parametrize(
    ("probs_SBC", "message"),
    [
        (torch.empty(2, 3, 0), "must be a distribution"),
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
def test_invalid_passes_are_refused(probs_SBC, message):
    with pytest.raises(ValueError, match=message):
        summarize(probs_SBC)


def test_an_unknown_design_is_refused():
    with pytest.raises(ValueError, match="masks must be one of stratified, independent, got 'sobol'"):
        summarize(torch.full((2, 1, 2), 0.5), masks="sobol")
