import json
from itertools import pairwise

import numpy as np
import pytest
from scipy import special

from model.calibration import (
    COVERAGES,
    RAPS_FREE_RANKS,
    RAPS_PENALTY,
    RISKS,
    Calibration,
    apply_temperature,
    find_calibration,
    nonconformity_scores,
)


def calibration(**changed: object) -> Calibration:
    fields = {
        "estimator": "masks",
        "samples": 30,
        "temperature": 1.5,
        "set_scores": {
            "lac": dict(zip(COVERAGES, (0.3, 0.5, 0.7, 0.9), strict=True)),
            "aps": dict(zip(COVERAGES, (0.6, 0.8, 0.9, None), strict=True)),
        },
        "confidences": dict(zip(RISKS, (None, 0.9, 0.6), strict=True)),
        "reference": {"predictive_entropy": [0, 0.5, 2], "mutual_information": [0, 0.1, 1]},
    }
    return Calibration(**(fields | changed))


SCORES = calibration().to_json()["set_scores"]


@pytest.fixture
def probs_BC() -> np.ndarray:
    return np.random.default_rng(51).dirichlet(np.ones(6) / 2, size=40)


@pytest.mark.parametrize("temperature", [0.3, 1, 2.5])
def test_a_temperature_divides_the_logits(temperature):
    logits_BC = np.random.default_rng(52).normal(size=(7, 5)) * 3
    found = apply_temperature(special.softmax(logits_BC, axis=1), temperature)
    assert np.allclose(found, special.softmax(logits_BC / temperature, axis=1), rtol=1e-10)


def test_a_temperature_takes_certainty_and_no_images():
    assert np.allclose(apply_temperature(np.array([[1.0, 0.0]]), 3), [[1, 0]], atol=1e-9)
    assert apply_temperature(np.empty((0, 4)), 3).shape == (0, 4)


def test_scores_of_sets_are_those_of_the_definitions(probs_BC):
    uniform_B = np.random.default_rng(53).random(len(probs_BC))
    assert np.array_equal(nonconformity_scores(probs_BC, uniform_B, method="lac"), 1 - probs_BC)
    found_BC = nonconformity_scores(probs_BC, uniform_B, method="aps")
    for probs_C, uniform, found_C in zip(probs_BC, uniform_B, found_BC, strict=True):
        for p, found in zip(probs_C, found_C, strict=True):
            assert found == pytest.approx(sum(other for other in probs_C if other > p) + (1 - uniform) * p)


def test_improbable_ranks_are_penalized_by_raps():
    probs_BC = np.random.default_rng(55).dirichlet(np.ones(9), size=20)
    uniform_B = np.random.default_rng(56).random(20)
    found_BC = nonconformity_scores(probs_BC, uniform_B, method="raps")
    for probs_C, uniform, found_C in zip(probs_BC, uniform_B, found_BC, strict=True):
        for p, found in zip(probs_C, found_C, strict=True):
            larger = [other for other in probs_C if other > p]
            penalty = RAPS_PENALTY * max(len(larger) + 1 - RAPS_FREE_RANKS, 0)
            assert found == pytest.approx(sum(larger) + (1 - uniform) * p + penalty)
        in_order = found_C[np.argsort(-probs_C)]
        assert all(
            one < next_one for one, next_one in pairwise(in_order)
        )  # so that a set has the most probable classes


def test_each_class_has_its_own_threshold_in_mondrian_sets():
    probs_BC = np.array([[0.55, 0.25, 0.2], [0.05, 0.95, 0]])
    one = calibration(set_scores={"mondrian": {0.9: (0.4, 0.8, 0.85), 0.95: (0.5, 0.7, None), 0.99: None}})
    sets = {level: one.prediction_set(probs_BC, np.zeros(2), coverage=level, method="mondrian") for level in COVERAGES}
    assert sets[0.9].tolist() == [[False, True, True], [False, True, False]]
    assert sets[0.95].tolist() == [[True, False, True], [False, True, True]]  # too few images of the last class
    assert (sets[0.8], sets[0.99]) == (None, None)
    assert [one.classes_without_threshold(level) for level in COVERAGES] == [[], [], [2], []]


def test_an_older_card_lacks_the_newer_methods(probs_BC):
    old = Calibration.from_json(json.loads(json.dumps(calibration().to_json())))
    assert old.set_scores.keys() == {"lac", "aps"}
    for method in ("raps", "mondrian"):
        assert old.prediction_set(probs_BC, np.zeros(len(probs_BC)), coverage=0.9, method=method) is None
    assert old.classes_without_threshold(0.9) == []


def test_prediction_set_contains_classes_up_to_the_calibrated_score():
    probs_BC, uniform_B = np.array([[0.55, 0.25, 0.2], [0.05, 0.95, 0]]), np.array([0.0, 0.5])
    one = calibration()
    assert one.prediction_set(probs_BC, uniform_B, coverage=0.9, method="lac").tolist() == [
        [True, False, False], [False, True, False],
    ]  # fmt: skip
    assert one.prediction_set(probs_BC, uniform_B, coverage=0.8, method="lac").tolist()[0] == [False] * 3
    assert one.prediction_set(probs_BC, uniform_B, coverage=0.9, method="aps").tolist() == [
        [True, True, False], [False, True, False],
    ]  # fmt: skip
    assert one.prediction_set(probs_BC, uniform_B, coverage=0.99, method="aps") is None


def test_larger_coverages_never_have_smaller_sets(probs_BC):
    uniform_B, one = np.random.default_rng(54).random(len(probs_BC)), calibration()
    sizes = [one.prediction_set(probs_BC, uniform_B, coverage=c, method="lac").sum() for c in COVERAGES]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    ("confidence", "risk", "answered"), [(0.6, 0.05, True), (0.59, 0.05, False), (0.9, 0.02, True), (1.0, 0.01, False)]
)
def test_confident_predictions_are_answered(confidence, risk, answered):
    assert calibration().is_answered(np.array([confidence]), risk=risk).tolist() == [answered]


def test_a_card_keeps_a_calibration():
    by_class = dict(zip(COVERAGES, ((0.1, 0.2), (0.3, 0.4), (0.5, None), None), strict=True))
    one = calibration(set_scores=calibration().set_scores | {"mondrian": by_class})
    assert Calibration.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"estimator": "mc"}, "expected one of eval, masks, moments, got 'mc'"),
        ({"temperature": 0}, "the temperature must be above 0, got 0"),
        ({"temperature": "nan"}, "the temperature must be above 0, got nan"),
        ({"temperature": None}, "bad"),
        ({"set_scores": {"lac": {}}}, "bad"),
        ({"set_scores": SCORES | {"raps": {}}}, "bad"),
        (
            {"set_scores": SCORES | {"mondrian": SCORES["lac"]}},
            "bad entry: mondrian needs a list of numbers, got float",
        ),
        ({"set_scores": SCORES | {"mondrian": {level: [[]] for level in SCORES["lac"]}}}, "bad"),
        ({"confidences": []}, "bad"),
        ({"reference": [1]}, "bad"),
    ],
)
def test_from_json_refuses_an_invalid_calibration(changed, message):
    with pytest.raises(ValueError, match=message):
        Calibration.from_json(calibration().to_json() | changed)


def test_from_json_names_a_missing_entry():
    fields = calibration().to_json()
    del fields["samples"]
    with pytest.raises(ValueError, match="samples"):
        Calibration.from_json(fields)


@pytest.mark.parametrize(
    ("estimator", "samples", "found"),
    [
        ("masks", 30, 30), ("masks", 99, 30), ("masks", 1000, 100), ("masks", 29, 10), ("masks", 9, None),
        ("eval", 0, 0), ("moments", 0, None),
    ],
)  # fmt: skip
def test_masks_are_calibrated_by_the_largest_number_not_above(estimator, samples, found):
    known = [calibration(samples=n) for n in (100, 10, 30)] + [calibration(estimator="eval", samples=0)]
    one = find_calibration(known, estimator, samples)
    assert (None if one is None else one.samples) == found
    assert one is None or one.estimator == estimator
