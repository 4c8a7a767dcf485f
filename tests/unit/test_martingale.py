"""The bettor against the promise of prediction sets."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from model.martingale import CAP, ODDS, next_evidence, start_weight, tolerated_miss


def evidence_after(missed_RT: np.ndarray, tolerated: float) -> np.ndarray:
    """Mean evidence of each run over the bets, at each image: (R, T)."""
    evidence_RK, found = np.zeros((len(missed_RT), len(ODDS))), []
    for image, missed_R in enumerate(missed_RT.T):
        evidence_RK = next_evidence(evidence_RK, missed_R, np.array(tolerated), image=image)
        found.append(evidence_RK.mean(axis=1))
    return np.stack(found, axis=1)


@given(missed=st.lists(st.booleans(), min_size=1, max_size=30), tolerated=st.floats(0.01, 0.5))
@example(missed=[True] * 8 + [False], tolerated=0.03125)
def test_below_its_cap_the_evidence_is_a_sum_over_starts(missed, tolerated):
    expected_KT = []
    for odds in ODDS:
        q = tolerated * odds / (1 - tolerated + tolerated * odds)
        factors = [q / tolerated if one else (1 - q) / (1 - tolerated) for one in missed]
        expected_KT.append(
            [
                sum(start_weight(start) * math.prod(factors[start:image]) for start in range(image))
                for image in range(1, len(missed) + 1)
            ]
        )
    capped = np.max(expected_KT, axis=0) > CAP
    until = int(capped.argmax()) if capped.any() else len(missed)
    found_T = evidence_after(np.array([missed]), tolerated)[0]
    assert found_T[:until] == pytest.approx(np.mean(expected_KT, axis=0)[:until], rel=1e-9)
    assert (found_T <= CAP).all()


@given(tolerated=st.floats(0.001, 0.6), probability=st.floats(0, 1), evidence=st.floats(0, 100))
def test_a_bet_gains_nothing_where_the_promise_holds(tolerated, probability, evidence):
    probability *= tolerated
    before_K = np.full(len(ODDS), evidence)
    after = [next_evidence(before_K, np.array(missed), np.array(tolerated), image=5) for missed in (True, False)]
    expected_K = probability * after[0] + (1 - probability) * after[1]
    assert (expected_K <= (evidence + start_weight(5)) * (1 + 1e-9)).all()


def test_the_weights_of_all_starts_sum_to_one():
    weights = [start_weight(image) for image in range(100_000)]
    assert min(weights) > 0
    assert sum(weights) == pytest.approx(1 - 1 / math.log2(100_002))


@pytest.mark.parametrize("tolerated", [0.02, 0.1, 0.25])
def test_false_alarms_are_as_rare_as_promised(tolerated):
    runs, level = 2000, 0.05
    missed_RT = np.random.default_rng(72).random((runs, 2000)) < tolerated
    alarms = (evidence_after(missed_RT, tolerated).max(axis=1) >= 1 / level).sum()
    assert alarms <= stats.binom.ppf(0.999, runs, level)


def test_a_change_after_a_long_calm_is_found_soon():
    rng = np.random.default_rng(73)
    missed_RT = np.concatenate([rng.random((50, 5000)) < 0.1, rng.random((50, 500)) < 0.3], axis=1)
    found_RT = evidence_after(missed_RT, 0.1135)
    assert (found_RT[:, :5000] >= 100).any(axis=1).sum() <= stats.binom.ppf(0.999, 50, 0.01)
    assert (found_RT[:, 4999] < 1).all()
    assert (found_RT[:, 5000:].max(axis=1) >= 100).all()


def test_evidence_is_forgotten_after_a_change_has_ended():
    missed_1T = np.repeat([True, False], [300, 400])[None]
    (found_T,) = evidence_after(missed_1T, 0.1)
    assert found_T.max() == pytest.approx(CAP)
    assert found_T[-1] < 100


@pytest.mark.parametrize(("coverage", "images"), [(0.8, 300), (0.9, 5000), (0.99, 100), (0.95, 1000)])
def test_tolerated_misses_are_those_that_calibrations_have_by_chance(coverage, images):
    """The threshold is the k-th of n uniform scores, and the probability of a miss is what lies above it."""
    rank = math.ceil((images + 1) * coverage - 1e-9)
    assert tolerated_miss(coverage, images=images) == pytest.approx(stats.beta.isf(1e-3, images + 1 - rank, rank))
    runs = 20_000
    misses_R = (
        1 - np.sort(np.random.default_rng(74).random((runs, images)), axis=1)[:, rank - 1] if images <= 300 else []
    )
    exceeding = np.count_nonzero(np.array(misses_R) > tolerated_miss(coverage, images=images))
    assert exceeding <= stats.binom.ppf(0.999, runs, 1e-3)
