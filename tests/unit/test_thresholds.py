"""Decisions that hang on a threshold, just below it, on it and just above it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from stages import prepare

from model import MLPConfig, MonteCarloDropout, build_mlp, load_artifact, summarize
from model.input_spec import FASHION_MNIST
from model.novelty import Novelty
from service.inference.decision import DecisionOptions, DecisionPolicy, _uniform
from service.inference.general_decoder import Decoded
from service.inference.predictor import Predictor
from service.inference.preparation import Invert, prepare_all

OPTIONS = DecisionOptions(coverage=0.9, set_method="lac", max_risk=0.05, false_alarm_rate=0.01)
UNCLEAR = "the border is neither dark nor light: set invert=yes or invert=no"
BUSY = "the background is not plain: Fashion-MNIST shows one item of clothing on a plain background"
BLANK = "the image is blank"


# The border without its corners; each corner belongs to two of the four sides, which have 112 pixels.
SIDES = [place for k in range(1, 27) for place in ((0, k), (27, k), (k, 0), (k, 27))]


def bordered(total: int) -> Decoded:
    """28 x 28, with a border whose four sides have this sum."""
    pixels = np.full((28, 28), 60, np.uint8)
    level = round(total / 112)
    pixels[[0, -1]] = pixels[:, [0, -1]] = level
    for place in SIDES[: abs(total - 112 * level)]:
        pixels[place] = level + (1 if total > 112 * level else -1)
    sides = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert sum(int(side.sum()) for side in sides) == total
    return Decoded(pixels, "array")


@pytest.mark.parametrize(
    ("total", "inverted"),
    [
        (0, False),
        (112 * 127, False),
        (14280, False),
        (14281, True),
        (112 * 128, True),
        (112 * 159, True),
        (28560, True),
    ],
)
def test_a_border_brighter_than_half_is_inverted(total, inverted):
    grey = bordered(total)  # 14280 is 112 times 127.5
    found = prepare(grey)
    assert found.inverted == inverted
    assert np.array_equal(found.pixels, 255 - grey.pixels if inverted else grey.pixels)


@pytest.mark.parametrize(
    ("total", "unclear"), [(112 * 96 - 1, False), (112 * 96, True), (112 * 160 - 1, True), (112 * 160, False)]
)
def test_a_border_of_96_to_160_is_unclear(total, unclear):
    assert (UNCLEAR in prepare(bordered(total)).warnings) == unclear
    for invert in (Invert.YES, Invert.NO):
        assert UNCLEAR not in prepare(bordered(total), invert=invert).warnings


@pytest.mark.parametrize("side", [np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]])
def test_each_side_of_the_border_counts(side):
    pixels = np.full((28, 28), 110, np.uint8)
    pixels[side] = 255  # with it the mean of the four sides is over 127.5, without it under
    assert prepare(Decoded(pixels, "array")).inverted
    pixels[side] = 150
    assert not prepare(Decoded(pixels, "array")).inverted


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_together_are_each_prepared(count):
    images = [bordered(total) for total in (0, 112 * 200, 112 * 127)[:count]]
    for image, found in zip(images, prepare_all(images, spec=FASHION_MNIST), strict=True):
        assert np.array_equal(found.pixels, prepare(image).pixels)


@pytest.mark.parametrize(("off", "busy"), [(55, False), (56, False), (57, True)])
def test_background_is_busy_if_over_half_differs(off, busy):
    pixels = np.full((28, 28), 240, np.uint8)
    for number, place in enumerate(SIDES[:off]):
        pixels[place] = 40 + 40 * (number % 4)
    assert (BUSY in prepare(Decoded(pixels, "array"), invert=Invert.NO).warnings) == busy


@pytest.mark.parametrize(("contrast", "plain"), [(13, True), (14, False)])
def test_pixels_within_13_levels_are_plain(contrast, plain):
    pixels = np.full((28, 28), 20, np.uint8)
    pixels[3, 3] = 20 + contrast
    assert (BLANK in prepare(Decoded(pixels, "array")).warnings) == plain
    larger = np.full((40, 40), 20, np.uint8)
    larger[10:20, 10:20] = 20 + contrast
    larger[30, 30] = 20 - contrast
    found = prepare(Decoded(larger, "array"))
    assert found.steps == (("resized",) if plain else ("trimmed", "resized"))


@pytest.mark.parametrize("together", [False, True])
def test_an_image_is_novel_only_above_the_threshold(served, together):
    artifact, pixels = served.artifact, served.pixels_B[:1]
    predictions = Predictor(artifact).predict(pixels)
    score = decided(artifact, predictions, pixels, math.inf, together).novelty.score
    alone = decided(artifact, predictions, pixels, score, together).novelty.score
    assert alone == pytest.approx(score, abs=1e-3)
    for threshold, novel in (
        (alone - 0.1, True), (np.nextafter(alone, -math.inf), True), (alone, False), (alone + 0.1, False),
    ):  # fmt: skip
        found = decided(artifact, predictions, pixels, float(threshold), together)
        assert found.novelty.flagged == novel
        assert (found.reason == "novelty") == novel


@pytest.mark.parametrize(("offset", "exact"), [(0.0009, True), (-0.0009, True), (0.0011, False), (-0.0011, False)])
def test_scores_near_the_threshold_are_those_of_images_alone(monkeypatch, offset, exact):
    artifact, pixels = load_artifact(), np.zeros((3, 28, 28), np.uint8)
    predictions = Predictor(artifact).predict(pixels)
    monkeypatch.setattr(Novelty, "views", lambda *_: {"features": np.array([9.0, 5 + offset, 1.0])})
    monkeypatch.setattr(Novelty, "views_alone", lambda *_: {"features": np.array([5 - offset])})
    found = scored(artifact, predictions, pixels, 5.0, together=True)
    expected = 5 - offset if exact else 5 + offset
    assert [one.novelty.score for one in found] == [9.0, expected, 1.0]
    assert [one.novelty.flagged for one in found] == [True, expected > 5, False]


def test_randomness_depends_on_every_bit_of_the_seed():
    pixels = np.zeros((28, 28), np.uint8)
    numbers = [_uniform(pixels, seed) for seed in (0, 1, 2**55, 2**56, 2**63, 2**64 - 1)]
    numbers += [_uniform(pixels + np.uint8(level), 0) for level in range(1, 256)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    assert kstest(numbers, "uniform").pvalue > 0.001


def decided(artifact, predictions, pixels, threshold, together):
    (found,) = scored(artifact, predictions, pixels, threshold, together)
    return found


def scored(artifact, predictions, pixels, threshold, together):
    novelty = replace(artifact.novelty, thresholds=dict.fromkeys(artifact.novelty.thresholds, threshold))
    policy = DecisionPolicy(replace(artifact, novelty=novelty), together=together)
    return policy.decide(predictions, pixels, OPTIONS, seed=0).each()


def expected_growth(mc: MonteCarloDropout, images_B: torch.Tensor, tolerance: float, most: int) -> list[int]:
    """An error falls with the square root of the samples: so many, in whole tens, at most four times as many."""
    counts = [min(20, most)]
    while True:
        found = summarize(mc.sample(images_B, samples=counts[-1], seed=0))
        tops = zip(found.mean.tolist(), found.standard_error.tolist(), strict=True)
        error = max(errors[probs.index(max(probs))] for probs, errors in tops)
        if error <= tolerance or counts[-1] == most:
            return counts
        needed = counts[-1] * (error / tolerance) * (error / tolerance)
        tens = next(tens for tens in range(10, 10 * most, 10) if tens >= needed or tens >= 4 * counts[-1])
        counts.append(min(max(tens, counts[-1] + 10), most))


@pytest.mark.parametrize("most", [15, 75, 1000])
def test_samples_grow_with_the_square_of_the_error(monkeypatch, most):
    torch.manual_seed(27)
    mc = MonteCarloDropout(build_mlp(MLPConfig(image=(6, 6), hidden=(32, 24), dropout=(0.2, 0.5), classes=5)))
    images_B = torch.rand(3, 6, 6)
    for tolerance in (0.0005, 0.002, 0.004, 0.005, 0.006, 0.007, 0.008, 0.5):
        expected, counts = expected_growth(mc, images_B, tolerance, most), []

        def counted(images_B, *, samples, counts=counts, **others):
            counts.append(samples)
            return MonteCarloDropout.sample(mc, images_B, samples=samples, **others)

        with monkeypatch.context() as patch:
            patch.setattr(mc, "sample", counted)
            mc.sample_until(images_B, tolerance=tolerance, max_samples=most)
        assert counts == expected
