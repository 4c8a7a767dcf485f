"""Against scipy's own tests, on the embedded model's references."""

import math

import numpy as np
import pytest
from scipy import stats

from model import load_artifact
from service.inference.predictor import ESTIMATORS
from service.monitoring.drift import Reference, summarize_feedback
from service.monitoring.metrics import PredictionCollector
from service.monitoring.prediction_log import RECORD_TYPE, RIGHT, UNKNOWN, WRONG, PredictionLog, Record
from service.schemas.answers import MODES

ARTIFACT = load_artifact()
REFERENCE = Reference(ARTIFACT)
CALIBRATION_IMAGES = ARTIFACT.card["data"]["split"]["calibration"]


def quantiles(estimator: str, statistic: str, samples: int = 0) -> list[float]:
    (found,) = (
        one.reference[statistic]
        for one in ARTIFACT.calibrations
        if (one.estimator, one.samples) == (estimator, samples)
    )
    return found


def draw(rng: np.random.Generator, count: int, estimator: str, statistic: str, samples: int = 0) -> np.ndarray:
    """From the reference's distribution."""
    found = quantiles(estimator, statistic, samples)
    return np.interp(rng.random(count), np.linspace(0, 1, len(found)), found)


def window(**columns: object) -> PredictionLog:
    columns = {"model": REFERENCE.model, "outcome": UNKNOWN} | columns
    count = max(np.size(values) for values in columns.values())
    recent = PredictionLog(None, count)
    table = np.zeros(count, RECORD_TYPE)
    for name, values in columns.items():
        table[name] = values
    table["time"] = np.arange(1, count + 1)
    for row in table.tolist():
        recent.add(Record(*row))
    return recent


def drift(recent: PredictionLog, estimator: str, images: int = 10**6):
    return dict(REFERENCE.drifts(recent, images=images))[estimator]


@pytest.mark.parametrize(("estimator", "samples"), [("eval", 0), ("masks", 30), ("masks", 100), ("moments", 0)])
@pytest.mark.parametrize("factor", [1, 1.3, 3])
def test_distance_and_p_value_are_scipys(estimator, samples, factor):
    rng = np.random.default_rng(5)
    columns = {"predictive_entropy": factor * draw(rng, 2000, estimator, "predictive_entropy", samples)}
    if estimator != "eval":
        columns["mutual_information"] = factor * draw(rng, 2000, estimator, "mutual_information", samples)
    found = drift(window(estimator=ESTIMATORS.index(estimator), samples=samples, **columns), estimator)
    assert found.images == 2000
    assert found.distances.keys() == columns.keys()
    for name, values in columns.items():
        many = np.interp(
            (np.arange(CALIBRATION_IMAGES) + 0.5) / CALIBRATION_IMAGES,
            np.linspace(0, 1, 101), quantiles(estimator, name, samples),
        )  # fmt: skip
        expected = stats.ks_2samp(values.round(7), many.round(7), method="asymp")
        assert found.distances[name] == pytest.approx(expected.statistic, abs=0.01)
        assert found.distances[name] <= expected.statistic + 1e-3
        if found.distances[name] > 0.1:
            assert found.p_values[name] < 1e-6
    effective = 2000 * CALIBRATION_IMAGES / (2000 + CALIBRATION_IMAGES)
    distance = found.distances["predictive_entropy"]
    assert found.p_values["predictive_entropy"] == pytest.approx(
        stats.kstwobign.sf(distance * effective**0.5), rel=1e-6
    )


def test_images_without_drift_rarely_raise_an_alarm():
    """At most one in twenty has a p-value below 0.05."""
    rng = np.random.default_rng(6)
    few = []
    for _ in range(200):
        entropies = draw(rng, 500, "masks", "predictive_entropy", 100)
        recent = window(estimator=ESTIMATORS.index("masks"), samples=100, predictive_entropy=entropies)
        few.append(drift(recent, "masks").p_values["predictive_entropy"] < 0.05)
    assert np.mean(few) <= 0.05


def test_window_has_newest_predictions_of_one_estimator_and_model():
    estimator, model = np.repeat([0, 1, 0], 400), np.full(1200, REFERENCE.model, "<u8")
    model[:100] = 1
    confidence = np.repeat([0.5, 0.6, 0.9], 400)
    recent = window(estimator=estimator, model=model, confidence=confidence)
    assert drift(recent, "eval").images == 700
    assert drift(recent, "eval").accuracy == pytest.approx((300 * 0.5 + 400 * 0.9) / 700)
    assert drift(recent, "eval", images=400).accuracy == pytest.approx(0.9)
    assert drift(recent, "masks").images == 400
    empty = drift(recent, "moments")
    assert (empty.images, empty.distances, empty.p_values) == (
        0, dict.fromkeys(empty.distances, 0.0), dict.fromkeys(empty.distances, 1.0),
    )  # fmt: skip
    assert math.isnan(empty.accuracy)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_cumulative_distribution_is_the_references(estimator):
    samples = {"masks": 100}.get(estimator, 0)
    for statistic in REFERENCE.statistics(estimator):
        many = draw(np.random.default_rng(7), 200_000, estimator, statistic, samples).astype(np.float32)
        bounds = (0.0001, 0.05, 0.3, 0.9, 1.0)
        found = REFERENCE.cumulative(estimator, statistic, bounds)
        expected = [(many <= bound * math.log(10)).mean() for bound in bounds]
        assert found == pytest.approx(expected, abs=0.012)
        assert found == sorted(found)
        assert found[-1] == 1


def test_feedback_tells_accuracy_and_calibration():
    rng = np.random.default_rng(8)
    confidence = rng.random(3000)
    outcome = np.where(rng.random(3000) < confidence, RIGHT, WRONG)
    outcome[::3] = UNKNOWN
    found = summarize_feedback(window(confidence=confidence, outcome=outcome))
    known = outcome != UNKNOWN
    assert found.images == 2000
    assert found.accuracy == pytest.approx((outcome[known] == RIGHT).mean())
    gaps = [
        abs((confidence[known] - (outcome[known] == RIGHT))[(confidence[known] * 10).astype(int) == bin_].sum())
        for bin_ in range(10)
    ]
    assert found.calibration_error == pytest.approx(sum(gaps) / 2000, rel=1e-5)
    assert found.calibration_error < 0.1
    sure = summarize_feedback(window(confidence=np.ones(100), outcome=np.repeat([RIGHT, WRONG], 50)))
    assert (sure.accuracy, sure.calibration_error) == (0.5, 0.5)
    nothing = summarize_feedback(PredictionLog(None, 5))
    assert nothing.images == 0
    assert math.isnan(nothing.accuracy)


def test_a_model_without_calibration_has_no_drift(monkeypatch):
    bare = Reference(load_artifact())
    monkeypatch.setattr(bare, "_calibrations", ())
    assert bare.estimators() == []
    assert list(bare.drifts(PredictionLog(None, 5), images=5)) == []


def test_collector_exposes_windows_and_reference():
    count = 50
    entropy_B = np.linspace(0, 2, count)
    recent = window(
        estimator=np.arange(count) % len(ESTIMATORS),
        samples=100,
        predictive_entropy=entropy_B,
        mutual_information=entropy_B / 3,
        confidence=0.9,
        outcome=np.where(np.arange(count) % 5 == 0, WRONG, RIGHT),
    )
    families = PredictionCollector(recent, lambda: REFERENCE, images=10**6).collect()
    found = {
        (one.name, *(one.labels[name] for name in sorted(one.labels))): one.value
        for family in families
        for one in family.samples
    }
    expected = {
        ("mcd_feedback_window_images",): count,
        ("mcd_feedback_accuracy_ratio",): 0.8,
        ("mcd_feedback_calibration_error_ratio",): 0.1,
    }
    for estimator in ESTIMATORS:
        mode, result = MODES[estimator], drift(recent, estimator)
        expected["mcd_drift_window_images", mode] = result.images
        expected["mcd_estimated_accuracy_ratio", mode] = 0.9
        expected["mcd_reference_accuracy_ratio", mode] = ARTIFACT.card["metrics"]["test"][mode]["accuracy"]
        for statistic in REFERENCE.statistics(estimator):
            expected["mcd_drift_score", mode, statistic] = result.distances[statistic]
            expected["mcd_drift_p_value", mode, statistic] = result.p_values[statistic]
            name = f"mcd_reference_{statistic}_bucket_ratio"
            bounds = [float(key[1]) for key in found if (key[0], key[-1]) == (name, mode)]
            assert bounds == sorted(bounds)
            assert bounds[-1] == 1
            assert len(bounds) > 5
            for bound, part in zip(bounds, REFERENCE.cumulative(estimator, statistic, bounds), strict=True):
                expected[name, str(bound), mode] = part
    assert found == pytest.approx(expected)
