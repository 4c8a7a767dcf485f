"""The state of the coverage after images with feedback."""

import json
import math

import numpy as np
import pytest
from known_calibration import CALIBRATION

from model.adaptive_conformal import METHODS, move_threshold
from model.calibration import COVERAGES, nonconformity_scores
from model.coverage import WINDOW, Coverage, thresholds, tolerated_misses, true_scores
from model.martingale import ODDS, next_evidence, tolerated_miss

STEP = 0.4


def after(scores_BM: np.ndarray, thresholds_ML: np.ndarray, tolerated_L: np.ndarray) -> Coverage:
    state = Coverage.start()
    for score_M in scores_BM:
        state = state.after(score_M, thresholds_ML, tolerated_L)
    return state


def test_the_state_is_that_of_a_loop_over_all_sets():
    scores_BM = np.random.default_rng(75).beta(2, 1, (WINDOW + 100, len(METHODS)))
    thresholds_ML, tolerated_L = thresholds(CALIBRATION), tolerated_misses(1000)
    found = after(scores_BM, thresholds_ML, tolerated_L)
    assert found.images == len(scores_BM)
    for row, column in np.ndindex(thresholds_ML.shape):
        threshold, level = thresholds_ML[row, column], COVERAGES[column]
        offset, static, adaptive, evidence_K = 0.0, 0.0, 0.0, np.zeros(len(ODDS))
        for image, score in enumerate(scores_BM[:, row]):
            if math.isnan(threshold):
                continue
            weight = 1 / min(image + 1, WINDOW)
            is_in = score <= move_threshold(threshold, offset)
            static += weight * ((score <= threshold) - static)
            adaptive += weight * (is_in - adaptive)
            offset += STEP * (level - is_in)
            evidence_K = next_evidence(evidence_K, np.array(score > threshold), tolerated_L[column], image=image)
        assert found.offsets_ML[row, column] == pytest.approx(offset)
        assert found.static_ML[row, column] == pytest.approx(static)
        assert found.adaptive_ML[row, column] == pytest.approx(adaptive)
        assert found.evidence_MLK[row, column] == pytest.approx(evidence_K)


def test_evidence_is_averaged_over_what_is_tested():
    state = after(np.ones((3, len(METHODS))), thresholds(CALIBRATION), tolerated_misses(1000))
    tested_ML = np.zeros(state.offsets_ML.shape, bool)
    assert math.isnan(state.evidence(tested_ML))
    tested_ML[0, 1] = tested_ML[1, 2] = True
    expected = (state.evidence_MLK[0, 1].mean() + state.evidence_MLK[1, 2].mean()) / 2
    assert state.evidence(tested_ML) == pytest.approx(expected)
    assert expected > 0


def test_a_state_survives_json():
    state = after(np.random.default_rng(76).random((5, 2)), thresholds(CALIBRATION), tolerated_misses(1000))
    found = Coverage.from_json(json.loads(json.dumps(state.to_json())))
    assert found.to_json() == state.to_json()
    assert found.images == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, "bad"), ({"images": -1}, "images must be 0 or more, got -1"),
        ({"images": math.inf}, "bad"), ({"offsets_ML": [1.0]}, "offsets_ML must be"),
        ({"offsets_ML": "x"}, "could not"), ({"static_ML": [[math.nan] * 4] * 2}, "static_ML must be"),
        ({"evidence_MLK": None}, "evidence_MLK must be"),
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Coverage.from_json(Coverage.start().to_json() | changed)
    with pytest.raises(ValueError, match="bad 'images'"):
        Coverage.from_json({})


def test_missing_thresholds_and_small_calibrations_are_not_tested():
    found_ML = thresholds(CALIBRATION)
    assert found_ML[0].tolist() == [0.3, 0.5, 0.7, 0.9]
    assert math.isnan(found_ML[1, 3])
    assert np.isnan(tolerated_misses(None)).all()
    assert np.isnan(tolerated_misses(50)).tolist() == [False, False, False, True]
    assert tolerated_misses(5000).tolist() == [tolerated_miss(level, images=5000) for level in COVERAGES]


def test_true_scores_are_those_of_the_true_class():
    probs_C = np.array([0.2, 0.5, 0.3])
    found_M = true_scores(probs_C, 2, uniform=0.25)
    expected = [nonconformity_scores(probs_C[None], np.array([0.25]), method=method)[0, 2] for method in METHODS]
    assert found_M.tolist() == expected == pytest.approx([0.7, 0.5 + 0.75 * 0.3])
