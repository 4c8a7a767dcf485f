"""Dropout from its definition, and keep-masks that depend on nothing but their key."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MAX_SEED = 2**64 - 1
_WORDS_PER_COUNTER = 4  # one step of Philox-4x64's counter yields four 64-bit words


def dropout_layer(X: Tensor, p: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Drop each element with probability p and divide the survivors by 1 - p, so that the expectation stays X.

    Inverted dropout (Srivastava et al. 2014, section 10; d2l.ai, "Dropout"): an element survives where U >= p, with U
    drawn from the uniform distribution on [0, 1).

    Args:
        X: activations of any shape.
        p: probability of dropping an element.
        generator: source of U; torch's global one if not given.

    Returns:
        A tensor of X's shape whose elements are 0 or x / (1 - p).

    Raises:
        ValueError: p lies outside [0, 1].
    """
    _check_probability(p)
    if p == 0:
        return X
    if p == 1:
        return torch.zeros_like(X)
    keep = torch.rand(X.shape, generator=generator, device=X.device) >= p
    return torch.where(keep, X / (1 - p), 0)


def keep_masks(
    shape_U: Sequence[int], p: float, *, samples: int, seed: int, layer: int = 0, first: int = 0
) -> np.ndarray:
    """Draw independent keep-masks as a pure function of (seed, layer, sample, unit).

    Sample s is the same mask whatever range it is drawn in, so the first 20 of 100 masks are the 20 masks of that
    seed; the same key gives the same bits on every system. The words come from the counter-based generator Philox
    (Salmon et al. 2011, doi:10.1145/2063384.2063405), keyed by seed and layer; a unit is kept where its 64-bit word
    is at least p * 2**64.

    Args:
        shape_U: shape of one mask.
        p: probability of dropping a unit.
        samples: how many masks to draw.
        seed: 0 .. 2**64 - 1.
        layer: position of the dropout layer in its network, 0 .. 2**64 - 1.
        first: index of the first sample to draw.

    Returns:
        Booleans of shape (samples, *shape_U), true where a unit is kept.

    Raises:
        TypeError: the seed is no whole number.
        ValueError: p lies outside [0, 1], or the seed outside its range.
    """
    _check_probability(p)
    check_seed(seed)
    shape = (samples, *shape_U)
    if p == 1:
        return np.zeros(shape, dtype=np.bool_)
    units = math.prod(shape_U)
    counter, offset = divmod(first * units, _WORDS_PER_COUNTER)
    words = np.random.Philox(key=np.array([seed, layer], dtype=np.uint64), counter=counter)
    drawn = words.random_raw(offset + samples * units)[offset:]
    return (drawn >= np.uint64(int(p * 2**64))).reshape(shape)


def check_seed(seed: int) -> None:
    """Refuse what is no seed.

    Raises:
        TypeError: not a whole number.
        ValueError: outside 0 .. 2**64 - 1.
    """
    if not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in 0..2**64 - 1, got {seed}")


def survivor_scale(p: float) -> float:
    """The factor 1 / (1 - p) of a unit that survives; 0 for p = 1, where none does."""
    return 0.0 if p == 1 else 1 / (1 - p)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability must be in [0, 1], got {p}")
