import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from model import dropout_layer, keep_masks

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


def test_a_generator_fixes_the_mask_and_leaves_the_global_one_alone():
    X = torch.ones(1000)
    before = torch.get_rng_state()
    first, same, other = (dropout_layer(X, 0.5, generator=seeded(seed)) for seed in (4, 4, 5))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dropped_infinity_is_zero():
    out = dropout_layer(torch.full((100,), torch.inf), 0.5, generator=seeded(6))
    assert set(out.tolist()) == {0.0, torch.inf}


@pytest.mark.parametrize("p", [0.2, 0.5])
@pytest.mark.parametrize("make", [nn.Dropout, lambda p: lambda X: dropout_layer(X, p)])
def test_the_definition_and_torchs_layer_have_the_moments_of_inverted_dropout(p, make):
    """E[out] = x and Var[out] = E[x^2] / (1 - p) - E[x]^2: here of one value x, in draws enough to see it."""
    torch.manual_seed(7)
    x, draws = 3.0, 400_000
    out = make(p)(torch.full((draws,), x))
    variance = x**2 / (1 - p) - x**2
    assert_rate(int((out == 0).sum()), draws, p)
    assert out.mean().item() == pytest.approx(x, abs=5 * (variance / draws) ** 0.5)
    assert out.var().item() == pytest.approx(variance, rel=0.02)


def test_torchs_layer_outside_training_is_the_definition_at_zero():
    X = torch.randn(20, 30, generator=seeded(8))
    assert torch.equal(nn.Dropout(0.5).eval()(X), dropout_layer(X, 0))


def drawn(samples: int = 40, **changes: object) -> np.ndarray:
    return keep_masks(**{"shape_U": (7, 3), "p": 0.3, "samples": samples, "seed": 5, "layer": 1} | changes)


def test_masks_are_nested_in_their_number():
    assert np.array_equal(drawn(20), drawn(40)[:20])


@pytest.mark.parametrize("units", [1, 3, 4, 21, 256])
@pytest.mark.parametrize("first", [0, 1, 7, 128])
def test_any_range_of_samples_is_a_slice_of_all(units, first):
    draw = {"shape_U": (units,), "p": 0.4, "seed": 3}
    assert np.array_equal(
        keep_masks(**draw, samples=9, first=first), keep_masks(**draw, samples=140)[first : first + 9]
    )


@pytest.mark.parametrize("change", [{"seed": 6}, {"layer": 0}, {"seed": 2**64 - 1}])
def test_another_seed_or_layer_gives_unrelated_masks(change):
    shape = {"shape_U": (50,), "samples": 2000, "p": 0.5}
    agree = int((drawn(**shape) == drawn(**shape | change)).sum())
    assert_rate(agree, 100_000, 0.5)


@pytest.mark.parametrize("p", [0.01, 0.2, 1 / 3, 0.5, 0.95])
def test_units_are_kept_at_their_rate_in_every_sample_and_unit(p):
    masks = keep_masks((200,), p, samples=500, seed=11)
    assert_rate(int(masks.sum()), masks.size, 1 - p)
    for axis in (0, 1):
        low, high = binom.interval(1 - FALSE_ALARM, masks.shape[axis], 1 - p)
        assert ((masks.sum(axis=axis) >= low) & (masks.sum(axis=axis) <= high)).all()


def test_all_are_kept_at_zero_and_none_at_one():
    assert drawn(p=0).all()
    assert not drawn(p=1).any()


def test_a_second_implementation_draws_the_same_masks():
    uniform = np.random.Generator(np.random.Philox(key=np.array([5, 1], dtype=np.uint64))).random((40, 7, 3))
    assert np.array_equal(drawn(), uniform >= 0.3)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be in 0\.\.2\*\*64 - 1, got"):
        drawn(seed=seed)
