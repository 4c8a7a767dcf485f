"""What a worker counts, read back as Prometheus reads it."""

import math

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.inference.decision import Decision, NoveltyScore
from service.inference.predictor import Prediction, Predictor
from service.monitoring.metrics import FLUSH_SECONDS, Metrics

CLASSES = ("boot", "coat", "sandal")
MODEL = "0123456789abcdef"


@pytest.fixture
def metrics(monkeypatch) -> Metrics:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return Metrics()


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels, in alphabetical order of their names."""
    metrics.flush()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.expose().decode())
        for sample in family.samples
    }


def prediction(**changed) -> Prediction:
    fields = {"estimator": "eval", "label": "coat", "class_index": 1, "probabilities": [0.1, 0.7, 0.2]}
    return Prediction(**(fields | {"predictive_entropy": 0.8} | changed))


def decision(**changed) -> Decision:
    nothing = dict.fromkeys(Decision.__dataclass_fields__) | {"warnings": ()}
    return Decision(**(nothing | changed))


def test_new_worker_reports_itself_and_is_not_ready(metrics):
    found = values(metrics)
    assert found["mcd_workers",] == 1
    assert found["mcd_ready",] == 0
    assert found["mcd_http_requests_in_progress",] == 0
    assert [value for (name, *_), value in found.items() if name == "mcd_build_info"] == [1]
    assert 0 < FLUSH_SECONDS < 1  # shorter than any scrape interval


def test_requests_in_progress_rise_and_fall_by_one(metrics):
    metrics.begin()
    metrics.begin()
    assert values(metrics)["mcd_http_requests_in_progress",] == 2
    metrics.request("/predict", "POST", 200, 0.1)
    assert values(metrics)["mcd_http_requests_in_progress",] == 1


def test_only_timed_routes_have_durations(metrics):
    metrics.route("/predict", "POST", (200, 400), timed=True)
    metrics.route("/health", "GET", (200,), timed=False)
    found = values(metrics)
    assert found["mcd_http_requests_total", "400", "POST", "/predict"] == 0
    assert found["mcd_http_requests_total", "200", "GET", "/health"] == 0
    metrics.request("/predict", "POST", 200, 0.25)
    metrics.request("/health", "GET", 200, 0.25)
    metrics.request("/other", "GET", 404, 0.25)
    found = values(metrics)
    assert found["mcd_http_requests_total", "200", "POST", "/predict"] == 1
    assert found["mcd_http_requests_total", "404", "GET", "/other"] == 1
    assert found["mcd_http_request_duration_seconds_sum", "POST", "/predict"] == 0.25
    assert found["mcd_http_request_duration_seconds_bucket", "0.25", "POST", "/predict"] == 1
    assert found["mcd_http_request_duration_seconds_bucket", "0.1", "POST", "/predict"] == 0
    assert ("mcd_http_request_duration_seconds_sum", "GET", "/health") not in found


def test_a_new_model_takes_the_place_of_the_old_one(metrics):
    metrics.model(MODEL, "first", CLASSES)
    found = values(metrics)
    assert found["mcd_ready",] == 1
    assert found["mcd_model_info", "0123456789ab", "first"] == 1
    assert ("mcd_model_info", "", "") not in found
    metrics.model("f" * 64, "second", CLASSES)
    found = values(metrics)
    assert found["mcd_model_info", "0123456789ab", "first"] == 0
    assert found["mcd_model_info", "f" * 12, "second"] == 1
    assert found["mcd_predictions_total", "moments", "f" * 12, "sandal"] == 0


def test_a_prediction_counts_in_parts_of_the_largest_entropy(metrics):
    metrics.model(MODEL, "default", CLASSES)
    metrics.prediction(MODEL, prediction(), None)
    found = values(metrics)
    assert found["mcd_predictions_total", "eval", "0123456789ab", "coat"] == 1
    assert found["mcd_forward_passes_total",] == 1
    assert found["mcd_samples_per_prediction_sum",] == 0
    assert found["mcd_samples_per_prediction_bucket", "0.0"] == 1
    assert found["mcd_predictive_entropy_ratio_sum", "eval"] == pytest.approx(0.8 / math.log(3))
    assert found["mcd_mutual_information_ratio_count", "mc"] == found["mcd_vote_agreement_ratio_count",] == 0
    assert found["mcd_confidence_ratio_count",] == found["mcd_novelty_score_count",] == 0


def test_sampled_masks_information_and_votes_are_counted(metrics, served):
    artifact = served.artifact
    metrics.model(MODEL, "default", artifact.classes)
    (sampled,) = Predictor(artifact).sample(served.pixels_B[:1], samples=30, seed=0).each()
    metrics.prediction(MODEL, sampled, None)
    found = values(metrics)
    assert found["mcd_forward_passes_total",] == found["mcd_samples_per_prediction_sum",] == 30
    information = sampled.mutual_information / math.log(len(artifact.classes))
    assert found["mcd_mutual_information_ratio_sum", "mc"] == pytest.approx(information)
    assert found["mcd_vote_agreement_ratio_sum",] == pytest.approx(sampled.agreement)
    votes_S = sampled.probs_SBC[:, 0].argmax(axis=1)
    assert sampled.agreement == np.mean(votes_S == sampled.class_index)


def test_decisions_are_counted_by_what_was_decided(metrics):
    metrics.model(MODEL, "default", CLASSES)
    novel = NoveltyScore(score=1.75, threshold=1.0, view="features")
    typical = NoveltyScore(score=-0.5, threshold=1.0, view="features")
    metrics.prediction(MODEL, prediction(), decision(reason="novelty", novelty=novel, prediction_set=["coat", "boot"]))
    metrics.prediction(MODEL, prediction(), decision(probabilities=[0.05, 0.9, 0.05], novelty=typical))
    found = values(metrics)
    assert found["mcd_confidence_ratio_sum",] == pytest.approx(0.7 + 0.9)
    assert found["mcd_prediction_set_size_classes_sum",] == 2
    assert found["mcd_prediction_set_size_classes_count",] == 1
    assert found["mcd_abstentions_total", "novelty"] == 1
    assert found["mcd_abstentions_total", "risk"] == 0
    assert found["mcd_novelty_score_sum",] == 1.75
    assert found["mcd_novelty_score_bucket", "0.0"] == 1


def test_stages_problems_and_feedback_are_counted(metrics):
    metrics.stages({"decode": 0.002, "infer": 0.03}, 4)
    metrics.rejected("not-found")
    metrics.feedback(right=3, wrong=2)
    found = values(metrics)
    assert found["mcd_batch_size_images_sum",] == 4
    assert found["mcd_stage_duration_seconds_sum", "infer"] == 0.03
    assert found["mcd_stage_duration_seconds_count", "encode"] == 0
    assert found["mcd_requests_rejected_total", "not-found"] == 1
    assert found["mcd_feedback_total", "right"] == 3
    assert found["mcd_feedback_total", "wrong"] == 2


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("http_request_duration_seconds", 0.0025, 10), ("stage_duration_seconds", 0.0001, 1),
        ("batch_size_images", 1, 1000), ("samples_per_prediction", 0, 1000), ("predictive_entropy_ratio", 0.05, 1),
        ("mutual_information_ratio", 0.001, 1), ("confidence_ratio", 0.05, 1), ("vote_agreement_ratio", 0.05, 1),
        ("prediction_set_size_classes", 0, 1000), ("novelty_score", 0, 10),
    ],
)  # fmt: skip
def test_buckets_span_the_range_in_steps_that_grow(metrics, name, first, last):
    metrics.route("/predict", "POST", (), timed=True)
    found = [name_[1] for name_ in values(metrics) if name_[0] == f"mcd_{name}_bucket"]
    bounds = sorted({float(bound) for bound in found})
    assert (bounds[0], bounds[-2], bounds[-1]) == (first, last, math.inf)
    steps = np.diff(bounds[:-1])
    assert (steps > 0).all()
    assert (np.diff(steps) >= -1e-12).all()


@pytest.mark.parametrize("count", [100, 101])
def test_classes_are_named_up_to_a_hundred(metrics, count):
    classes = [f"class {index}" for index in range(count)]
    metrics.model(MODEL, "recipe", classes)
    probabilities = np.full(count, 1 / count).tolist()
    for index in (0, count - 1, count - 1):
        found = {"label": classes[index], "class_index": index, "probabilities": probabilities}
        metrics.prediction(MODEL, prediction(**found), None)
    counted = {
        labels[-1]: value
        for (name, *labels), value in values(metrics).items()
        if name == "mcd_predictions_total" and "eval" in labels
    }
    if count == 100:
        assert counted == dict.fromkeys(classes, 0) | {"class 0": 1, "class 99": 2}
    else:
        assert counted == {"other": 3}
