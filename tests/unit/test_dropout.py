import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare, hypergeom
from torch import nn

from model import DropConnect, dropout_layer, keep_masks

DESIGNS = ["stratified", "independent"]

FALSE_ALARM = 1e-6  # probability that a right implementation fails a two-sided binomial bound


def assert_rate(count: int, trials: int, p: float) -> None:
    low, high = binom.interval(1 - FALSE_ALARM, trials, p)
    assert low <= count <= high


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_every_output_is_dropped_or_scaled(p):
    X = torch.randn(50, 40, generator=seeded(1)) + 3
    out = dropout_layer(X, p, generator=seeded(2))
    assert ((out == 0) | torch.isclose(out, X / (1 - p))).all()
    assert_rate(int((out == 0).sum()), X.numel(), p)


def test_nothing_is_dropped_at_zero_and_everything_at_one():
    X = torch.arange(16.0).reshape(2, 8)
    assert torch.equal(dropout_layer(X, 0), X)
    assert torch.equal(dropout_layer(X, 1), torch.zeros(2, 8))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_probability_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got"):
        dropout_layer(torch.ones(3), p)
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got"):
        keep_masks((3,), p, samples=2, seed=0)


def test_generator_determines_the_mask_without_global_random_state():
    X = torch.ones(1000)
    before = torch.get_rng_state()
    first, same, other = (dropout_layer(X, 0.5, generator=seeded(seed)) for seed in (4, 4, 5))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_dropped_units_are_zero_for_any_input(value):
    X = torch.full((100,), value)
    out = dropout_layer(X, 0.5, generator=seeded(6))
    kept = out != 0
    assert 0 < kept.sum() < 100
    assert torch.equal(out[kept].nan_to_num(), X[kept].nan_to_num())
    assert not dropout_layer(X, 1).any()


def test_the_gradient_flows_through_the_survivors_alone():
    X = torch.randn(200, generator=seeded(9)).add(5).requires_grad_()
    out = dropout_layer(X, 0.2, generator=seeded(10))
    out.sum().backward()
    assert torch.allclose(X.grad, torch.where(out == 0, 0, 1.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_precision_is_that_of_the_input(dtype):
    assert dropout_layer(torch.ones(4, dtype=dtype), 0.3).dtype == dtype


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("make", [nn.Dropout, lambda p: lambda X: dropout_layer(X, p)], ids=["torch", "definition"])
def test_definition_and_torch_layer_have_the_moments_of_inverted_dropout(p, make):
    """E[out] = E[x] and Var[out] = E[x^2] / (1 - p) - E[x]^2, each within 5 standard errors; x is uniform on [1, 4].

    Those of the mean and of the variance over n draws: sqrt(m2 / n) and sqrt((m4 - m2^2) / n), of central moments m.
    """
    torch.manual_seed(7)
    draws = 400_000
    mean, mean_of_squares = 2.5, 7.0  # (1 + 4) / 2 and (4^3 - 1^3) / (3 * 3)
    out = make(p)(1 + 3 * torch.rand(draws, dtype=torch.float64))
    variance = mean_of_squares / (1 - p) - mean**2
    fourth = (out - mean).pow(4).mean().item()
    assert_rate(int((out == 0).sum()), draws, p)
    assert out.mean().item() == pytest.approx(mean, abs=5 * (variance / draws) ** 0.5)
    assert out.var().item() == pytest.approx(variance, abs=5 * ((fourth - variance**2) / draws) ** 0.5)


def test_torch_layer_in_eval_mode_is_the_identity():
    X = torch.randn(20, 30, generator=seeded(8))
    assert torch.equal(nn.Dropout(0.5).eval()(X), X)
    assert torch.equal(dropout_layer(X, 0), X)


def drawn(samples: int = 40, **changes: object) -> np.ndarray:
    given = {"shape_U": (7, 3), "p": 0.3, "samples": samples, "seed": 5, "layer": 1, "masks": "independent"}
    return keep_masks(**given | changes)


@given(
    shape_U=st.lists(st.integers(0, 9), max_size=3),
    first=st.integers(0, 150),
    samples=st.integers(0, 40),
    p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    masks=st.sampled_from(DESIGNS),
)
@settings(max_examples=200, deadline=None)
def test_any_range_of_samples_is_a_slice_of_all(shape_U, first, samples, p, seed, masks):
    part = keep_masks(shape_U, p, samples=samples, seed=seed, first=first, masks=masks)
    assert part.shape == (samples, *shape_U)
    assert part.dtype == np.bool_
    whole = keep_masks(shape_U, p, samples=first + samples + 7, seed=seed, masks=masks)
    assert np.array_equal(part, whole[first : first + samples])


@pytest.mark.parametrize("masks", DESIGNS)
def test_a_sample_far_out_is_drawn_without_those_before_it(masks):
    found = drawn(3, first=2**70, masks=masks)
    assert found.shape == (3, 7, 3)
    assert not np.array_equal(found, drawn(3, masks=masks))
    assert np.array_equal(found[1:], drawn(2, first=2**70 + 1, masks=masks))


def test_neighbouring_independent_samples_are_unrelated():
    masks = keep_masks((50,), 0.5, samples=2001, seed=12, masks="independent")
    assert_rate(int((masks[1:] == masks[:-1]).sum()), 100_000, 0.5)


def blocks_of(masks: np.ndarray) -> np.ndarray:
    """Whole blocks of ten stratified masks: (blocks, 10, units)."""
    return masks.reshape(-1, 10, masks.shape[-1])


def assert_unrelated(one: np.ndarray, other: np.ndarray, kept: int) -> None:
    """In each block of either, `kept` of ten are kept in random places: both are as often as balls of two colours."""
    both = np.bincount((one & other).sum(axis=1).ravel(), minlength=11)
    expected = hypergeom.pmf(range(11), 10, kept, kept) * both.sum()
    rare = expected < 5
    counts, means = (np.append(numbers[~rare], numbers[rare].sum()) for numbers in (both, expected))
    assert chisquare(counts[means > 0], means[means > 0]).pvalue > FALSE_ALARM


@pytest.mark.parametrize("change", [{"seed": 6}, {"layer": 0}, {"seed": 2**64 - 1}, {"seed": 1, "layer": 5}])
def test_another_seed_or_layer_gives_unrelated_masks(change):
    shape = {"shape_U": (50,), "samples": 2000, "p": 0.5}
    agree = int((drawn(**shape) == drawn(**shape | change)).sum())
    assert_rate(agree, 100_000, 0.5)
    one, other = (blocks_of(drawn(**shape | also | {"masks": "stratified"})) for also in ({}, change))
    assert_unrelated(one, other, 5)


@pytest.mark.parametrize("p", [0.01, 0.2, 1 / 3, 0.5, 0.95])
def test_units_are_kept_at_the_rate_by_sample_and_unit(p):
    masks = keep_masks((200,), p, samples=500, seed=11, masks="independent")
    assert_rate(int(masks.sum()), masks.size, 1 - p)
    for axis in (0, 1):
        low, high = binom.interval(1 - FALSE_ALARM, masks.shape[axis], 1 - p)
        assert ((masks.sum(axis=axis) >= low) & (masks.sum(axis=axis) <= high)).all()


@pytest.mark.parametrize("p", [0.001, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.73, 0.9, 0.95, 0.999])
def test_stratified_masks_keep_the_rate_by_mask_and_block(p):
    """In a block, a unit is dropped 10 p times, or as often as the whole numbers around it, so that it is on average.

    Each of the ten samples of a block is asked for itself: one that is favoured would be made up for by the others.
    """
    blocks = blocks_of(keep_masks((200,), p, samples=400, seed=13))
    for sample in range(10):
        assert_rate(int(blocks[:, sample].sum()), 40 * 200, 1 - p)
    dropped = 10 - blocks.sum(axis=1)
    below = math.floor(10 * p)
    assert set(np.unique(dropped)) <= {below, math.ceil(10 * p)}
    assert_rate(int((dropped > below).sum()), dropped.size, 10 * p - below)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.35])
def test_units_of_a_stratified_mask_are_independent(p):
    """Of one sample in each block; FALSE_ALARM is that of all pairs of units together."""
    units = 12
    masks = blocks_of(keep_masks((units,), p, samples=40_000, seed=14))[:, 3].astype(int)
    expected = len(masks) * np.outer([p, 1 - p], [p, 1 - p]).ravel()
    for u, v in itertools.combinations(range(units), 2):
        counts = np.bincount(2 * masks[:, u] + masks[:, v], minlength=4)
        assert chisquare(counts, expected).pvalue > FALSE_ALARM / (units * (units - 1) / 2)


@pytest.mark.parametrize("kept", [8, 5, 1])
def test_units_are_stratified_each_by_itself_and_blocks_are_independent(kept):
    blocks = blocks_of(keep_masks((20,), 1 - kept / 10, samples=20_000, seed=15))
    assert_unrelated(blocks[..., ::2], blocks[..., 1::2], kept)
    assert_unrelated(blocks[::2], blocks[1::2], kept)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.25, 1 / 3, 0.5, 0.77, 0.99])
@pytest.mark.parametrize(("seed", "layer"), [(0, 0), (2**64 - 1, 3)])
def test_ranks_with_jitter_give_the_same_stratified_masks(p, seed, layer):
    """Latin hypercube as its paper has it (McKay et al. 1979): (rank + jitter) / 10, kept where p or more."""
    blocks, units = 3, 6
    words = iter(np.random.Philox(key=np.array([seed, layer], dtype=np.uint64)).random_raw(blocks * 11 * units))
    for block in range(blocks):
        rows = [[int(next(words)) for _ in range(units)] for _ in range(11)]
        found = keep_masks((units,), p, samples=10, seed=seed, layer=layer, first=10 * block)
        for unit in range(units):
            *ten, jitter = [row[unit] for row in rows]
            uniform = [(sorted(ten).index(word) + Fraction(jitter, 2**64)) / 10 for word in ten]
            assert found[:, unit].tolist() == [number >= Fraction(p) for number in uniform]


@pytest.mark.parametrize("masks", DESIGNS)
def test_p_zero_keeps_all_and_p_one_keeps_none(masks):
    assert drawn(p=0, masks=masks).all()
    assert not drawn(p=1, masks=masks).any()


@pytest.mark.parametrize("p", [0, 0.5, 1])
def test_an_unknown_design_is_refused(p):
    with pytest.raises(ValueError, match="masks must be one of stratified, independent, got 'sobol'"):
        drawn(p=p, masks="sobol")


@pytest.mark.parametrize("p", [0.01, 0.2, 1 / 3, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 5, 2**63, 2**64 - 1])
def test_numpys_uniform_numbers_compared_with_p_give_the_same_masks(p, seed):
    uniform = np.random.Generator(np.random.Philox(key=np.array([seed, 3], dtype=np.uint64))).random((40, 7, 3))
    assert np.array_equal(drawn(p=p, seed=seed, layer=3), uniform >= p)


def philox4x64(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Ten rounds of Philox-4x64 as its paper has them (Salmon et al. 2011, section 3.3), in whole numbers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        first, second = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        low = 2**64 - 1
        a, b, c, d = second >> 64 ^ b ^ k, second & low, first >> 64 ^ d ^ m, first & low
        k, m = (k + 0x9E3779B97F4A7C15) & low, (m + 0xBB67AE8584CAA73B) & low
    return a, b, c, d


def test_philox_gives_published_test_vectors():
    """Two lines of `kat_vectors` in Random123, the code of the paper: of zeros and of the digits of pi."""
    assert philox4x64((0, 0, 0, 0), (0, 0)) == (
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    )  # fmt: skip
    assert philox4x64(
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
    ) == (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6)


@pytest.mark.parametrize(("seed", "layer"), [(0, 0), (5, 1), (2**64 - 1, 7)])
def test_masks_equal_the_written_out_generator(seed, layer):
    """NumPy steps the counter before its first words, so they are those of counter 1."""
    units, p = 5, 0.3
    words = [word for step in range(1, 6) for word in philox4x64((step, 0, 0, 0), (seed, layer))]
    expected = np.array([word >= Fraction(p) * 2**64 for word in words]).reshape(4, units)
    assert np.array_equal(drawn(4, shape_U=(units,), p=p, seed=seed, layer=layer), expected)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed must be in 0\.\.2\*\*64 - 1, got {seed}"):
        drawn(seed=seed)
    with pytest.raises(ValueError, match=rf"seed must be in 0\.\.2\*\*64 - 1, got {seed}"):
        drawn(seed=seed, p=1)


def test_non_integer_seed_is_refused():
    with pytest.raises((TypeError, ValueError), match="seed"):
        drawn(seed=1.7)


def dropconnect(p: float, **options: object) -> DropConnect:
    torch.manual_seed(20)
    return DropConnect(6, 4, p, **options).double()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_dropconnect_has_the_moments_of_dropped_weights(p):
    """E[out] = W x + b and Var[out_v] = p / (1 - p) sum_u W_vu^2 x_u^2, each within 6 standard errors."""
    layer = dropconnect(p, generator=seeded(21))
    x = torch.randn(6, dtype=torch.float64, generator=seeded(22))
    draws = 6000
    with torch.no_grad():
        out = torch.stack([layer(x) for _ in range(draws)])
        mean = layer.weight @ x + layer.bias
        variance = p / (1 - p) * (layer.weight * x).square().sum(dim=1)
    fourth = (out - mean).pow(4).mean(dim=0)
    assert ((out.mean(dim=0) - mean).abs() < 6 * (variance / draws).sqrt()).all()
    assert ((out.var(dim=0) - variance).abs() < 6 * ((fourth - variance**2) / draws).sqrt()).all()


def test_dropconnect_drops_or_scales_weights_and_keeps_biases():
    p, layer = 0.3, dropconnect(0.3, generator=seeded(23))
    with torch.no_grad():
        found = torch.stack([layer(torch.eye(6, dtype=torch.float64)) - layer.bias for _ in range(500)])
        kept = torch.isclose(found, layer.weight.T / (1 - p))
        assert (kept | torch.isclose(found, torch.zeros(()).double())).all()
        assert torch.equal(layer(torch.zeros(6).double()), layer.bias)
    assert_rate(int((~kept).sum()), kept.numel(), p)


def test_examples_of_a_call_share_a_mask_but_calls_differ():
    layer = dropconnect(0.5, generator=seeded(24))
    X = torch.ones(5, 6).double()
    first, second = layer(X), layer(X)
    assert torch.allclose(first, first[:1].expand(5, 4))
    assert not torch.allclose(first, second)


def test_dropconnect_outside_training_is_the_linear_layer():
    layer = dropconnect(0.5).eval()
    X = torch.randn(7, 6, generator=seeded(25)).double()
    assert torch.equal(layer(X), nn.functional.linear(X, layer.weight, layer.bias))
    assert torch.equal(dropconnect(0.0)(X), layer(X))


def test_dropconnect_learns_through_the_weights_that_are_left_alone():
    layer = dropconnect(0.5, generator=seeded(26), bias=False)
    out = layer(torch.ones(6).double())
    out.sum().backward()
    assert set(layer.weight.grad.unique().tolist()) == {0.0, 2.0}
    assert torch.allclose((layer.weight * layer.weight.grad).sum(dim=1), out)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_dropconnect_refuses_an_invalid_probability(p):
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got"):
        DropConnect(2, 2, p)


def test_generator_determines_dropconnect_masks_without_global_random_state():
    X = torch.ones(3, 6).double()
    first, same = dropconnect(0.5, generator=seeded(27)), dropconnect(0.5, generator=seeded(27))
    before = torch.get_rng_state()
    assert torch.equal(first(X), same(X))
    assert torch.equal(torch.get_rng_state(), before)
    assert "p=0.5" in repr(first)
