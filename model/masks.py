"""Dropout masks that are a pure function of their key."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

MAX_SEED = 2**64 - 1
BLOCK = 10  # number of stratified masks in a block

Masks = Literal["stratified", "independent"]
MaskRange = tuple[range, int, Masks]  # samples, seed, design
_DESIGNS = get_args(Masks)

_CHUNK_SAMPLES = 100
_CHUNK_UNITS = 2**18
_WORDS_PER_COUNTER = 4  # Philox-4x64 yields four 64-bit words for each counter value


def keep_masks(
    shape_U: Sequence[int],
    p: float,
    *,
    samples: int,
    seed: int,
    layer: int = 0,
    first: int = 0,
    masks: Masks = "stratified",
) -> np.ndarray:
    """Draw keep-masks as a pure function of (seed, layer, sample, unit).

    Mask s does not depend on the range in which it is drawn: the first 20 of 100 masks are the 20 masks of the same
    seed. The same key gives the same bits on every system. The random words come from the counter-based generator
    Philox (Salmon et al. 2011, doi:10.1145/2063384.2063405), keyed by seed and layer.

    In both designs a mask keeps each unit with probability 1 - p, independently of the other units:

    - "independent": a unit is kept where its 64-bit word is at least p * 2**64.
    - "stratified": samples 0..9, 10..19 and so on form independent blocks. Within a block the ten uniform numbers of
      a unit, compared with p, lie one in each tenth of [0, 1), in random order (Latin hypercube sampling: McKay et al.
      1979, doi:10.1080/00401706.1979.10489755). A block so drops the unit 10 p times; if 10 p is no integer, the
      number is rounded up or down at random.

    Args:
        shape_U: shape of one mask.
        p: probability of dropping a unit.
        samples: how many masks to draw.
        seed: 0 .. 2**64 - 1.
        layer: position of the dropout layer in its network, 0 .. 2**64 - 1.
        first: index of the first sample to draw.
        masks: the design.

    Returns:
        Booleans of shape (samples, *shape_U), true where a unit is kept.

    Raises:
        TypeError: the seed is not an integer.
        ValueError: p lies outside [0, 1], the seed outside its range, or the design is unknown.
    """
    check_probability(p)
    check_seed(seed)
    check_masks(masks)
    shape = (samples, *shape_U)
    if p == 1:
        return np.zeros(shape, dtype=np.bool_)
    draw = _independent if masks == "independent" else _stratified
    return draw(math.prod(shape_U), p, range(first, first + samples), (seed, layer)).reshape(shape)


def _independent(units: int, p: float, samples: range, key: tuple[int, int]) -> np.ndarray:
    words = _words(samples.start * units, len(samples) * units, key)
    return words >= np.uint64(int(p * 2**64))


def _stratified(units: int, p: float, samples: range, key: tuple[int, int]) -> np.ndarray:
    """Keep a unit where its word ranks high enough among the ten words of its block.

    Rank r represents a uniform number in [r / 10, (r + 1) / 10). For the interval that contains p, an eleventh word
    decides whether the unit is kept.
    """
    blocks = range(samples.start // BLOCK, -(-samples.stop // BLOCK))
    per_block = (BLOCK + 1) * units
    words = _words(blocks.start * per_block, len(blocks) * per_block, key).reshape(len(blocks), BLOCK + 1, units)
    candidates, tie_breakers = words[:, :BLOCK], words[:, BLOCK]
    dropped = math.floor(p * BLOCK)
    keeps_one_more = tie_breakers >= np.uint64(int((p * BLOCK - dropped) * 2**64))
    ascending = np.sort(candidates, axis=1)
    highest_dropped = np.where(
        keeps_one_more,
        ascending[:, dropped - 1] if dropped else np.uint64(0),
        ascending[:, min(dropped, BLOCK - 1)],
    )
    keep = candidates > highest_dropped[:, None]
    skip = samples.start - blocks.start * BLOCK
    return keep.reshape(len(blocks) * BLOCK, units)[skip : skip + len(samples)]


def _words(first: int, count: int, key: tuple[int, int]) -> np.ndarray:
    """Words first .. first + count - 1 of a key's stream."""
    counter, offset = divmod(first, _WORDS_PER_COUNTER)
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter).random_raw(offset + count)[offset:]


@lru_cache
def mask_chunks(samples: int, units: int) -> tuple[range, ...]:
    """Split samples into chunks of whole blocks to bound the memory: at most 100 masks and about 2**18 units (1 MB)."""
    size = min(_CHUNK_SAMPLES, max(_CHUNK_UNITS // max(units, 1) // BLOCK, 1) * BLOCK)
    return tuple(range(first, min(first + size, samples)) for first in range(0, samples, size))


def member_samples(samples: range, member: int, members: int) -> range:
    """Find which of its own masks a member of an ensemble gets among samples.

    Sample s belongs to member s mod M, and is mask s // M of this member. So few samples are spread evenly, and each
    member gets whole blocks of stratified masks.

    Args:
        samples: of the ensemble.
        member: 0 .. members - 1.
        members: number M of networks.
    """
    return range(-((member - samples.start) // members), -((member - samples.stop) // members))


def check_masks(masks: str) -> None:
    """Raise a ValueError if the design is neither "stratified" nor "independent"."""
    if masks not in _DESIGNS:
        raise ValueError(f"masks must be one of {', '.join(_DESIGNS)}, got {masks!r}")


def check_seed(seed: int) -> None:
    """Refuse an invalid seed.

    Raises:
        TypeError: not an integer.
        ValueError: outside 0 .. 2**64 - 1.
    """
    if not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in 0..2**64 - 1, got {seed}")


def check_sampling(samples: int, seed: int, masks: str) -> None:
    """Refuse an invalid request for samples.

    Raises:
        TypeError: the seed is not an integer.
        ValueError: fewer than 2 samples, a seed out of range, or an unknown design.
    """
    check_seed(seed)
    check_masks(masks)
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}: one mask has no spread")


def survivor_scale(p: float) -> float:
    """Return the factor 1 / (1 - p) of a kept unit; 0 for p = 1, where no unit is kept."""
    return 0.0 if p == 1 else 1 / (1 - p)


def check_probability(p: float) -> None:
    """Raise a ValueError if a probability lies outside [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability must be in [0, 1], got {p}")
