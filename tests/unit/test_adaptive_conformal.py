"""Thresholds that follow feedback."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_calibration import CALIBRATION

from model.adaptive_conformal import LIMIT, METHODS, STEP, adapt, move_threshold, next_offsets
from model.calibration import COVERAGES

UNIT = st.floats(0, 1)


@given(
    scores=st.lists(UNIT, min_size=1, max_size=300),
    threshold=UNIT,
    coverage=st.sampled_from(COVERAGES),
    step=st.floats(0.01, 5),
)
def test_misses_approach_the_promise_whatever_the_scores(scores, threshold, coverage, step):
    offset, misses = 0.0, 0
    for score in scores:
        missed = score > move_threshold(threshold, offset)
        misses += missed
        offset = float(next_offsets(np.array(offset), np.array(missed), np.array(coverage), step=step))
        assert abs(offset) <= 2 * LIMIT + step + 1e-9
    assert abs(misses / len(scores) - (1 - coverage)) <= (2 * LIMIT + step) / (step * len(scores)) + 1e-9


def test_coverage_returns_after_an_adversarial_change():
    """The opposite of what the calibration saw: all true classes have scores above all of its scores."""
    rng, offset = np.random.default_rng(71), np.zeros(())
    missed_B = np.empty(3000, bool)
    for image, score in enumerate(1 - np.exp(-rng.uniform(5, 9, 3000))):
        missed_B[image] = score > move_threshold(0.5, float(offset))
        offset = next_offsets(offset, missed_B[image], np.array(0.9))
    assert missed_B[:10].all()
    assert missed_B[500:].reshape(5, 500).mean(axis=1) == pytest.approx(0.1, abs=0.02)


@given(threshold=UNIT, offset=st.floats(-40, 40), more=st.floats(0, 40))
def test_a_larger_offset_never_lowers_a_threshold(threshold, offset, more):
    if 0 not in {offset, offset + more}:
        assert move_threshold(threshold, offset) <= move_threshold(threshold, offset + more)


@pytest.mark.parametrize(
    ("threshold", "offset", "expected"),
    [
        (0.5, 0, 0.5), (0.5, math.log(3), 0.75), (0.75, -math.log(3), 0.5), (0.2, math.log(16), 0.8), (1, 0, 1),
        (0.5, LIMIT, math.inf), (0.5, -LIMIT, -math.inf), (0, 2 * LIMIT, math.inf), (1, -2 * LIMIT, -math.inf),
        (1, -LIMIT, 0.5), (0, LIMIT, 0.5), (math.nan, 0, math.nan),
    ],
)  # fmt: skip
def test_thresholds_move_in_log_odds(threshold, offset, expected):
    assert move_threshold(threshold, offset) == pytest.approx(expected, nan_ok=True)


def test_a_miss_raises_and_a_hit_lowers():
    found = next_offsets(np.array([1.0, 1.0]), np.array([True, False]), np.array(0.8), step=0.5)
    assert found.tolist() == pytest.approx([1.4, 0.9])
    assert STEP * 0.1 < LIMIT


@pytest.mark.parametrize("method", METHODS)
def test_only_the_asked_threshold_of_a_calibration_moves(method):
    before = CALIBRATION
    after = adapt(before, math.log(2), coverage=0.9, method=method)
    threshold = before.set_scores[method][0.9]
    assert after.set_scores[method][0.9] == pytest.approx(2 * threshold / (1 + threshold))
    back = {**after.set_scores, method: {**after.set_scores[method], 0.9: threshold}}
    assert replace(after, set_scores=back) == before
    assert adapt(before, 0, coverage=0.9, method=method) is before


def test_an_uncalibrated_coverage_stays_without_threshold():
    before = CALIBRATION
    assert before.set_scores["aps"][0.99] is None
    assert adapt(before, 1.0, coverage=0.99, method="aps") is before


def test_moved_sets_hold_all_classes_or_none():
    probs_BC = np.array([[0.7, 0.3, 0.0]])
    for offset, expected in ((3 * LIMIT, [True] * 3), (-3 * LIMIT, [False] * 3)):
        moved = adapt(CALIBRATION, offset, coverage=0.8, method="lac")
        assert moved.prediction_set(probs_BC, np.zeros(1), coverage=0.8, method="lac").tolist() == [expected]
