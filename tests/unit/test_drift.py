"""Against scipy's own tests, on the references of two models."""

import math

import numpy as np
import pytest
from scipy import stats

from model import Artifact
from service.inference.predictor import ESTIMATORS
from service.monitoring.drift import Reference, summarize_feedback
from service.monitoring.metrics import PredictionCollector
from service.monitoring.prediction_log import RECORD_TYPE, RIGHT, UNKNOWN, WRONG, PredictionLog, Record
from service.schemas.answers import MODES


@pytest.fixture(scope="module")
def artifact(served) -> Artifact:
    return served.artifact


@pytest.fixture(scope="module")
def reference(artifact) -> Reference:
    return Reference(artifact)


def quantiles(artifact: Artifact, estimator: str, statistic: str, samples: int) -> list[float]:
    (found,) = (
        one.reference[statistic]
        for one in artifact.calibrations
        if (one.estimator, one.samples) == (estimator, samples)
    )
    return found


def draw(quantiles: list[float], rng: np.random.Generator, count: int) -> np.ndarray:
    """From the reference's distribution."""
    return np.interp(rng.random(count), np.linspace(0, 1, len(quantiles)), quantiles)


def window(reference: Reference | None = None, **columns: object) -> PredictionLog:
    columns = {"model": 0 if reference is None else reference.model, "outcome": UNKNOWN} | columns
    count = max(np.size(values) for values in columns.values())
    recent = PredictionLog(None, count)
    table = np.zeros(count, RECORD_TYPE)
    for name, values in columns.items():
        table[name] = values
    table["time"] = np.arange(1, count + 1)
    for row in table.tolist():
        recent.add(Record(*row))
    return recent


def drift(reference: Reference, recent: PredictionLog, estimator: str, images: int = 10**6):
    return dict(reference.drifts(recent, images=images))[estimator]


@pytest.mark.parametrize(("estimator", "samples"), [("eval", 0), ("masks", 30), ("masks", 100), ("moments", 0)])
@pytest.mark.parametrize("factor", [1, 1.3, 3])
def test_distance_and_p_value_are_scipys(artifact, reference, estimator, samples, factor):
    if estimator not in reference.estimators():
        assert estimator == "moments"
        return
    rng = np.random.default_rng(5)
    of_calibration = {name: quantiles(artifact, estimator, name, samples) for name in reference.statistics(estimator)}
    columns = {name: factor * draw(values, rng, 2000) for name, values in of_calibration.items()}
    recent = window(reference, estimator=ESTIMATORS.index(estimator), samples=samples, **columns)
    found = drift(reference, recent, estimator)
    assert found.images == 2000
    assert found.distances.keys() == columns.keys()
    images = artifact.card["data"]["split"]["calibration"]
    effective = 2000 * images / (2000 + images)
    for name, values in columns.items():
        many = np.interp((np.arange(images) + 0.5) / images, np.linspace(0, 1, 101), of_calibration[name])
        expected = stats.ks_2samp(values.round(7), many.round(7), method="asymp")
        assert found.distances[name] == pytest.approx(expected.statistic, abs=max(0.01, 2 / images))
        assert found.distances[name] <= expected.statistic + 1e-3
        scaled = found.distances[name] * effective**0.5
        assert found.p_values[name] == pytest.approx(stats.kstwobign.sf(scaled), rel=1e-6)


def test_images_without_drift_rarely_raise_an_alarm(artifact, reference):
    """At most one in twenty has a p-value below 0.05."""
    rng = np.random.default_rng(6)
    of_calibration = quantiles(artifact, "masks", "predictive_entropy", 100)
    few = []
    for _ in range(200):
        columns = {"samples": 100, "predictive_entropy": draw(of_calibration, rng, 500)}
        recent = window(reference, estimator=ESTIMATORS.index("masks"), **columns)
        few.append(drift(reference, recent, "masks").p_values["predictive_entropy"] < 0.05)
    assert np.mean(few) <= 0.05


def test_window_has_newest_predictions_of_one_estimator_and_model(reference):
    estimator, model = np.repeat([0, 1, 0], 400), np.full(1200, reference.model, "<u8")
    model[:100] = 1
    confidence = np.repeat([0.5, 0.6, 0.9], 400)
    recent = window(estimator=estimator, model=model, confidence=confidence)
    assert drift(reference, recent, "eval").images == 700
    assert drift(reference, recent, "eval").accuracy == pytest.approx((300 * 0.5 + 400 * 0.9) / 700)
    assert drift(reference, recent, "eval", images=400).accuracy == pytest.approx(0.9)
    assert drift(reference, recent, "masks").images == 400
    empty = drift(reference, PredictionLog(None, 5), "masks")
    assert (empty.images, empty.distances, empty.p_values) == (
        0, dict.fromkeys(empty.distances, 0.0), dict.fromkeys(empty.distances, 1.0),
    )  # fmt: skip
    assert math.isnan(empty.accuracy)


def test_the_cumulative_distribution_is_the_references(artifact, reference):
    bounds = (0.0001, 0.05, 0.3, 0.9, 1.0)
    for estimator in reference.estimators():
        for statistic in reference.statistics(estimator):
            of_calibration = quantiles(artifact, estimator, statistic, {"masks": 100}.get(estimator, 0))
            many = draw(of_calibration, np.random.default_rng(7), 200_000).astype(np.float32)
            found = reference.cumulative(estimator, statistic, bounds)
            expected = [(many <= bound * math.log(len(artifact.classes))).mean() for bound in bounds]
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


def test_a_model_without_calibration_has_no_drift(artifact, monkeypatch):
    bare = Reference(artifact)
    monkeypatch.setattr(bare, "_calibrations", ())
    assert bare.estimators() == []
    assert list(bare.drifts(PredictionLog(None, 5), images=5)) == []


def test_collector_exposes_windows_and_reference(artifact, reference):
    count, estimators = 50, reference.estimators()
    entropy_B = np.linspace(0, 1.9, count)
    recent = window(
        reference,
        estimator=np.array([ESTIMATORS.index(one) for one in estimators])[np.arange(count) % len(estimators)],
        samples=100,
        predictive_entropy=entropy_B,
        mutual_information=entropy_B / 3,
        confidence=0.9,
        outcome=np.where(np.arange(count) % 5 == 0, WRONG, RIGHT),
    )
    families = PredictionCollector(recent, lambda: reference, images=10**6).collect()
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
    for estimator in estimators:
        mode, result = MODES[estimator], drift(reference, recent, estimator)
        expected["mcd_drift_window_images", mode] = result.images
        expected["mcd_estimated_accuracy_ratio", mode] = 0.9
        expected["mcd_reference_accuracy_ratio", mode] = artifact.card["metrics"]["test"][mode]["accuracy"]
        for statistic in reference.statistics(estimator):
            expected["mcd_drift_score", mode, statistic] = result.distances[statistic]
            expected["mcd_drift_p_value", mode, statistic] = result.p_values[statistic]
            name = f"mcd_reference_{statistic}_bucket_ratio"
            bounds = [float(key[1]) for key in found if (key[0], key[-1]) == (name, mode)]
            assert bounds == sorted(bounds)
            assert bounds[-1] == 1
            assert len(bounds) > 5
            for bound, part in zip(bounds, reference.cumulative(estimator, statistic, bounds), strict=True):
                expected[name, str(bound), mode] = part
    assert found == pytest.approx(expected)
