"""The Prometheus metrics.

Values of histograms and counters are collected first and counted a little later, many at a time: counting each at once,
in the files that the Prometheus client shares among workers, would take a twentieth of a prediction's time.
"""

import itertools
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0
from prometheus_client.registry import Collector

from model.adaptive_conformal import METHODS
from model.calibration import COVERAGES, Estimator
from service import __version__
from service.inference.decision import Decision, Reason
from service.inference.predictor import ESTIMATORS, Prediction
from service.monitoring.coverage import CoverageMonitor
from service.monitoring.drift import STATISTICS, Reference, summarize_feedback
from service.monitoring.multiprocess_files import finish_merge, merged
from service.monitoring.prediction_log import PredictionLog
from service.monitoring.prometheus_internals import DeferredCounter, DeferredHistogram, merge_files
from service.schemas.answers import MODES
from service.schemas.problems import STATUSES

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0
FLUSH_SECONDS = 0.25

_WITH_SPREAD: tuple[Estimator, ...] = ("masks", "moments")
_STAGES = ("decode", "infer", "encode")
_LATENCIES = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_LATENCIES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_NUMBERS = (0, 1, 10, 30, 100, 300, 1000)
_SET_SIZES = (*range(11), 30, 100, 300, 1000)
_RATIOS = tuple(step / 20 for step in range(1, 21))
_INFORMATION_RATIOS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SCORES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_BOUNDS = dict(zip(STATISTICS, (_RATIOS, _INFORMATION_RATIOS), strict=True))
_MODEL_DIGITS = 12
_MAX_NAMED_CLASSES = 100  # of a network; a series for each of a thousand classes, mode and worker would be too many
_UNNAMED = "other"
_PREDICTIONS = f"Predicted images; all classes of a network of more than {_MAX_NAMED_CLASSES} are {_UNNAMED}."


Deferred = TypeVar("Deferred", DeferredHistogram, DeferredCounter)


class Metrics:
    """Metrics of one worker, in their own registry; `expose` combines all workers of the server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._derived: list[Collector] = []
        self._deferred: dict[DeferredHistogram | DeferredCounter, None] = {}
        self._active_requests = 0
        shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._folder = Path(shared) if shared else None
        if self._folder is not None:
            finish_merge(self._folder)

        self._requests = self._counter(
            "http_requests", "HTTP requests, by route, method and status.", "route", "method", "code"
        )
        self._codes: dict[tuple[str, str, int], Counter] = {}
        durations = "Time from the arrival of a request to the end of its answer."
        self._durations = self._histogram("http_request_duration_seconds", durations, _LATENCIES, "route", "method")
        self._routes: dict[tuple[str, str], DeferredHistogram] = {}
        stages = "Duration of a stage for all images of a request."
        by_stage = self._histogram("stage_duration_seconds", stages, _STAGE_LATENCIES, "stage")
        self._stages = {stage: self._child(by_stage, stage) for stage in _STAGES}
        self._in_progress = self._gauge("http_requests_in_progress", "HTTP requests in progress.", "livesum")
        rejected = self._counter("requests_rejected", "Requests answered with a problem, by its type.", "reason")
        self._rejected = {kind: rejected.labels(kind) for kind in STATUSES}
        self._batches = self._child(
            self._histogram("batch_size_images", "Number of images of a request.", (1, 3, 10, 30, 100, 300, 1000))
        )

        self._predictions = self._counter("predictions", _PREDICTIONS, "model", "mode", "predicted_class")
        self._classes: dict[tuple[str, Estimator, str], DeferredCounter] = {}
        self._passes = self._child(
            self._counter("forward_passes", "Forward passes: dropout masks, or 1 without sampling.")
        )
        masks = "Dropout masks of a prediction; 0 without sampling."
        self._samples = self._child(self._histogram("samples_per_prediction", masks, _NUMBERS))
        self._entropies = self._by_estimator(
            "predictive_entropy_ratio", "Predictive entropy over ln(classes).", _RATIOS
        )
        self._informations = self._by_estimator(
            "mutual_information_ratio", "Mutual information over ln(classes).", _INFORMATION_RATIOS, _WITH_SPREAD
        )
        self._confidences = self._child(
            self._histogram("confidence_ratio", "Probability of the predicted class.", _RATIOS)
        )
        votes = "Fraction of the masks that vote for the predicted class."
        self._agreements = self._child(self._histogram("vote_agreement_ratio", votes, _RATIOS))
        sizes = "Number of classes in a prediction set."
        self._set_sizes = self._child(self._histogram("prediction_set_size_classes", sizes, _SET_SIZES))
        abstentions = self._counter("abstentions", "Predictions with abstention, by the reason.", "reason")
        self._abstentions = {reason: self._child(abstentions, reason) for reason in get_args(Reason)}
        self._novelties = self._child(
            self._histogram(
                "novelty_score", "Novelty of an image: how unlike ordinary images it is; about 0 is typical.", _SCORES
            )
        )
        outcomes = self._counter("feedback", "Predictions with feedback, by whether they are right.", "outcome")
        self._outcomes = {outcome: outcomes.labels(outcome) for outcome in ("wrong", "right")}

        self._model_info = self._gauge(
            "model_info", "Number of workers that serve a model.", "livesum", "model", "recipe"
        )
        self._model = ("", "")
        loaded = "Time at which the first worker loaded the model."
        self._loaded = self._gauge("model_loaded_timestamp_seconds", loaded, "livemin")
        ready = "1 if all workers have loaded and checked a model."
        self._ready = self._gauge("ready", ready, "livemin")
        self._workers = self._gauge("workers", "Number of worker processes.", "livesum")
        versions = {"version": __version__, "python": platform.python_version()}
        versions |= {name: version(name) for name in ("bentoml", "onnxruntime")}
        self._gauge("build_info", "Versions of the service and its libraries.", "livemax", *versions).labels(
            **versions
        ).set(1)
        # The files may be left from a dead worker with the same process id.
        self._in_progress.set(0)
        self._workers.set(1)
        self._ready.set(0)

    def route(self, route: str, method: str, codes: Iterable[int], *, timed: bool) -> None:
        """Create the metrics of a route at start-up.

        Args:
            route: name of the route, from a fixed set; never a raw path.
            method: method of the route.
            codes: possible statuses.
            timed: whether to measure durations.
        """
        if timed:
            self._routes[route, method] = self._child(self._durations, route, method)
        for code in codes:
            self._codes[route, method, code] = self._requests.labels(route, method, code)

    def model(self, identity: str, recipe: str, classes: Sequence[str]) -> None:
        """Record that this model now answers."""
        model = identity[:_MODEL_DIGITS]
        for estimator in ESTIMATORS:
            for name in classes if len(classes) <= _MAX_NAMED_CLASSES else (_UNNAMED,):
                self._classes[model, estimator, name] = self._child(self._predictions, model, MODES[estimator], name)
        if self._model != ("", ""):
            self._model_info.labels(*self._model).set(0)
        self._model = (model, recipe)
        self._model_info.labels(*self._model).set(1)
        self._loaded.set_to_current_time()
        self._ready.set(1)

    def begin(self) -> None:
        """Count the start of a request; `request` counts its end."""
        self._active_requests += 1

    def request(self, route: str, method: str, code: int, seconds: float) -> None:
        """Count the end of a request, and its duration if the route is timed."""
        counter = self._codes.get((route, method, code))
        (counter or self._requests.labels(route, method, code)).inc()
        if (route, method) in self._routes:
            self._routes[route, method].pending.append(seconds)
        self._active_requests -= 1

    def stages(self, seconds: dict[str, float], images: int) -> None:
        """Record the number of images of a request, and the durations of its stages."""
        self._batches.pending.append(images)
        for stage, duration in seconds.items():
            self._stages[stage].pending.append(duration)

    def rejected(self, kind: str) -> None:
        """Count a request that is answered with a problem."""
        self._rejected[kind].inc()

    def prediction(self, model: str, prediction: Prediction, decision: Decision | None) -> None:
        """Count a prediction of a model, and its decision."""
        estimator, max_entropy = prediction.estimator, math.log(len(prediction.probabilities))
        name = prediction.label if len(prediction.probabilities) <= _MAX_NAMED_CLASSES else _UNNAMED
        self._classes[model[:_MODEL_DIGITS], estimator, name].pending.append(1)
        self._passes.pending.append(max(prediction.samples, 1))
        self._samples.pending.append(prediction.samples)
        self._entropies[estimator].pending.append(prediction.predictive_entropy / max_entropy)
        if prediction.uncertainty is not None:
            self._informations[estimator].pending.append(prediction.mutual_information / max_entropy)
        if prediction.agreement is not None:
            self._agreements.pending.append(prediction.agreement)
        if decision is None:
            return
        self._confidences.pending.append(max(decision.probabilities or prediction.probabilities))
        if decision.prediction_set is not None:
            self._set_sizes.pending.append(len(decision.prediction_set))
        if decision.reason is not None:
            self._abstentions[decision.reason].pending.append(1)
        if decision.novelty is not None:
            self._novelties.pending.append(max(decision.novelty.score, 0.0))  # a histogram's sum must not decrease

    def feedback(self, *, right: int, wrong: int) -> None:
        """Count predictions with feedback."""
        self._outcomes["right"].inc(right)
        self._outcomes["wrong"].inc(wrong)

    def derive(self, collector: Collector) -> None:
        """Also expose a collector, whose metrics hold for all workers together."""
        self._derived.append(collector)

    def flush(self) -> None:
        """Count the collected values; may be called from any thread."""
        self._in_progress.set(self._active_requests)
        for metric in tuple(self._deferred):
            metric.count()

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format: of every worker under BentoML, else of this process."""
        self.flush()
        registry = CollectorRegistry()
        registry.register(self._registry if self._folder is None else _AllWorkers(self._folder))
        for collector in self._derived:
            registry.register(collector)
        return generate_latest(registry)

    def _counter(self, name: str, description: str, *labels: str) -> DeferredCounter:
        return DeferredCounter(f"mcd_{name}", description, labels, registry=self._registry)

    def _gauge(self, name: str, description: str, over_workers: str, *labels: str) -> Gauge:
        return Gauge(f"mcd_{name}", description, labels, registry=self._registry, multiprocess_mode=over_workers)  # type: ignore[arg-type]

    def _histogram(self, name: str, description: str, bounds: Sequence[float], *labels: str) -> DeferredHistogram:
        return DeferredHistogram(f"mcd_{name}", description, labels, registry=self._registry, buckets=tuple(bounds))

    def _child(self, metric: Deferred, *labels: str) -> Deferred:
        """One label set of a deferred metric, which `flush` counts."""
        child = metric.labels(*labels) if labels else metric
        self._deferred[child] = None
        return child

    def _by_estimator(
        self, name: str, description: str, bounds: Sequence[float], estimators: Sequence[Estimator] = ESTIMATORS
    ) -> dict[Estimator, DeferredHistogram]:
        histogram = self._histogram(name, description, bounds, "mode")
        return {estimator: self._child(histogram, MODES[estimator]) for estimator in estimators}


class PredictionCollector(Collector):
    """Gauges of drift and feedback, computed at each scrape from the recent predictions of all workers.

    Args:
        log: the recent predictions.
        reference: returns the reference of the current model.
        images: number of newest images of a mode that are compared with the reference.
    """

    def __init__(self, log: PredictionLog, reference: Callable[[], Reference], *, images: int) -> None:
        self._log, self._reference, self._images = log, reference, images

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        reference = self._reference()
        by_statistic = ("mode", "statistic")
        distance = _family("drift_score", "Kolmogorov-Smirnov distance of the window from the reference.", by_statistic)
        p_value = _family("drift_p_value", "p-value of the distance.", by_statistic)
        window = _family(
            "drift_window_images", "Number of newest images that are compared with the reference.", ("mode",)
        )
        accuracy = _family(
            "estimated_accuracy_ratio", "Mean confidence of the window, which estimates the accuracy.", ("mode",)
        )
        expected = _family("reference_accuracy_ratio", "Accuracy on the test images.", ("mode",))
        for estimator, drift in reference.drifts(self._log, images=self._images):
            mode = MODES[estimator]
            window.add_metric([mode], drift.images)
            accuracy.add_metric([mode], drift.accuracy)
            expected.add_metric([mode], reference.accuracy(estimator))
            for statistic in drift.distances:
                distance.add_metric([mode, statistic], drift.distances[statistic])
                p_value.add_metric([mode, statistic], drift.p_values[statistic])
        yield from (distance, p_value, window, accuracy, expected)
        for statistic, bounds in _BOUNDS.items():
            description = f"Fraction of the calibration images with a {statistic} over ln(classes) up to the bound."
            cumulative = _family(f"reference_{statistic}_bucket_ratio", description, ("mode", "bound"))
            for estimator in reference.estimators():
                if statistic in reference.statistics(estimator):
                    parts = reference.cumulative(estimator, statistic, bounds)
                    for bound, part in zip(bounds, parts, strict=True):
                        cumulative.add_metric([MODES[estimator], str(bound)], part)
            yield cumulative
        feedback = summarize_feedback(self._log)
        yield _family("feedback_window_images", "Number of recent images with feedback.", value=feedback.images)
        yield _family("feedback_accuracy_ratio", "Accuracy on recent images with feedback.", value=feedback.accuracy)
        error = "Expected calibration error on recent images with feedback."
        yield _family("feedback_calibration_error_ratio", error, value=feedback.calibration_error)


class CoverageCollector(Collector):
    """Gauges of the coverage by feedback, from the state that all workers share.

    Args:
        coverage: returns the coverage of the current model.
    """

    def __init__(self, coverage: Callable[[], CoverageMonitor]) -> None:
        self._coverage = coverage

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        by_set = ("mode", "set_method", "coverage")
        measured = "Fraction of the prediction sets, of the newest images with feedback, that have the true class."
        moved = "Log-odds by which feedback moves the threshold of the prediction sets with MCD_ADAPTIVE=true."
        evidence = "Evidence that the prediction sets lost their coverage; it ever reaches 1/a with probability a else."
        images = _family("coverage_feedback_images", "Images with feedback that the coverage is from.", ("mode",))
        covered = _family("coverage_ratio", measured, (*by_set, "sets"))
        offset = _family("coverage_threshold_offset", moved, by_set)
        lost = _family("coverage_evidence_ratio", evidence, ("mode",))
        for estimator, state, found in self._coverage().states():
            mode = MODES[estimator]
            images.add_metric([mode], state.images)
            lost.add_metric([mode], found)
            for (row, method), (column, level) in itertools.product(enumerate(METHODS), enumerate(COVERAGES)):
                labels = [mode, method, str(level)]
                offset.add_metric(labels, state.offsets_ML[row, column])
                for name, values_ML in (("static", state.static_ML), ("adaptive", state.adaptive_ML)):
                    covered.add_metric([*labels, name], values_ML[row, column] if state.images else math.nan)
        yield from (images, covered, offset, lost)


def _family(
    name: str, description: str, labels: Sequence[str] | None = None, value: float | None = None
) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mcd_{name}", description, labels=labels, value=value)


class _AllWorkers(Collector):
    """Metrics of all workers: counts of dead workers are included, their gauges are not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        with merged(self._folder) as files:
            return merge_files(files)
