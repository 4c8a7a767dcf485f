"""Fitting an image costs what its own pixels do, and gives what padding it first would."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stages import prepare

from service.inference.general_decoder import Decoded
from service.inference.preparation import _fit


def padded_first(grey: np.ndarray, background: int) -> np.ndarray:
    """The obvious way: a square of the longer side, resized by Pillow."""
    gaps = [max(grey.shape) - side for side in grey.shape]
    square = np.pad(grey, [(gap // 2, math.ceil(gap / 2)) for gap in gaps], constant_values=background)
    return np.asarray(Image.fromarray(square).resize((28, 28), Image.Resampling.LANCZOS))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 20), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_it_is_as_if_it_were_padded_first(height, width, grain, background, seed):
    shape = (-(-height // grain), -(-width // grain))
    cells = np.random.default_rng(seed).choice(np.array([0, 3, 97, 255], np.uint8), shape)
    grey = np.kron(cells, np.ones((grain, grain), np.uint8))[:height, :width].copy()
    opposite = 255 if background < 128 else 0
    grey[[0, -1]] = grey[:, [0, -1]] = opposite  # nothing is trimmed
    fitted, _ = _fit(grey, background)
    assert np.array_equal(fitted, padded_first(grey, background))


@pytest.mark.parametrize("shape", [(1, 150_000), (150_000, 1), (2, 60_000), (60_000, 2)])
def test_memory_of_a_long_image_is_bounded(shape):
    pixels = np.zeros(shape, np.uint8)
    pixels.ravel()[[1, -2]] = 200
    tracemalloc.start()
    prepared = prepare(Decoded(pixels, "PNG"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert prepared.pixels.shape == (28, 28)
    assert peak < 400 * pixels.size  # rows of 28 float64, and their weights; a square would take `pixels.size` times it
