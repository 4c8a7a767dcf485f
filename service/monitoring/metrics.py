"""What Prometheus sees.

Distributions and sums are noted in passing and counted a little later, many at a time: to count each at once, in files
that Prometheus' client shares among workers, would take a twentieth of a prediction's time.
"""

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

from model.calibration import Estimator
from service import __version__
from service.inference.decision import Decision, Reason
from service.inference.predictor import ESTIMATORS, Prediction
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
_RATIOS = tuple(step / 20 for step in range(1, 21))
_INFORMATION_RATIOS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SCORES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_BOUNDS = dict(zip(STATISTICS, (_RATIOS, _INFORMATION_RATIOS), strict=True))
_MODEL_DIGITS = 12


Noting = TypeVar("Noting", DeferredHistogram, DeferredCounter)


class Metrics:
    """Counts of one worker, in a registry of their own; `expose` shows all workers of the server together."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._derived: list[Collector] = []
        self._noting: dict[DeferredHistogram | DeferredCounter, None] = {}
        self._in_work = 0
        shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._folder = Path(shared) if shared else None
        if self._folder is not None:
            finish_merge(self._folder)

        self._requests = self._counter("http_requests", "HTTP requests by what they got.", "route", "method", "code")
        self._codes: dict[tuple[str, str, int], Counter] = {}
        durations = "Time from when a request is there to its answer."
        self._durations = self._histogram("http_request_duration_seconds", durations, _LATENCIES, "route", "method")
        self._routes: dict[tuple[str, str], DeferredHistogram] = {}
        stages = "Time that a stage took for all images of a request."
        by_stage = self._histogram("stage_duration_seconds", stages, _STAGE_LATENCIES, "stage")
        self._stages = {stage: self._child(by_stage, stage) for stage in _STAGES}
        self._in_progress = self._gauge("http_requests_in_progress", "HTTP requests in work.", "livesum")
        rejected = self._counter("requests_rejected", "Requests that got a problem, by its type.", "reason")
        self._rejected = {kind: rejected.labels(kind) for kind in STATUSES}
        self._batches = self._child(
            self._histogram("batch_size_images", "Images of a request.", (1, 3, 10, 30, 100, 300, 1000))
        )

        self._predictions = self._counter("predictions", "Images predicted.", "model", "mode", "predicted_class")
        self._classes: dict[tuple[str, Estimator, str], DeferredCounter] = {}
        self._passes = self._child(self._counter("forward_passes", "Dropout masks computed; 1 for a pass without any."))
        masks = "Dropout masks of a prediction, 0 where nothing is sampled."
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
        votes = "Part of the masks that vote for the predicted class."
        self._agreements = self._child(self._histogram("vote_agreement_ratio", votes, _RATIOS))
        sizes = "Classes of a prediction set."
        self._set_sizes = self._child(self._histogram("prediction_set_size_classes", sizes, range(11)))
        abstentions = self._counter("abstentions", "Predictions that are left to a person, by the reason.", "reason")
        self._abstentions = {reason: self._child(abstentions, reason) for reason in get_args(Reason)}
        self._novelties = self._child(
            self._histogram("novelty_score", "How unlike the training's an image is; 0 if it is typical.", _SCORES)
        )
        outcomes = self._counter("feedback", "Predictions whose true class was told.", "outcome")
        self._outcomes = {outcome: outcomes.labels(outcome) for outcome in ("wrong", "right")}

        self._model_info = self._gauge("model_info", "Workers that serve a model.", "livesum", "model", "recipe")
        self._model = ("", "")
        loaded = "When the model was loaded; of several workers, the first time."
        self._loaded = self._gauge("model_loaded_timestamp_seconds", loaded, "livemin")
        ready = "Whether all workers have a model that answered a known image right."
        self._ready = self._gauge("ready", ready, "livemin")
        self._workers = self._gauge("workers", "Worker processes.", "livesum")
        versions = {"version": __version__, "python": platform.python_version()}
        versions |= {name: version(name) for name in ("bentoml", "torch")}
        self._gauge("build_info", "What is served with.", "livemax", *versions).labels(**versions).set(1)
        # The file may be of a dead worker with the same process id.
        self._in_progress.set(0)
        self._workers.set(1)
        self._ready.set(0)

    def route(self, route: str, method: str, codes: Iterable[int], *, timed: bool) -> None:
        """Let there be counts of a route from the start: a template out of a fixed set, never a raw path."""
        if timed:
            self._routes[route, method] = self._child(self._durations, route, method)
        for code in codes:
            self._codes[route, method, code] = self._requests.labels(route, method, code)

    def model(self, identity: str, recipe: str, classes: Sequence[str]) -> None:
        """From now on this model answers."""
        model = identity[:_MODEL_DIGITS]
        for estimator in ESTIMATORS:
            for name in classes:
                self._classes[model, estimator, name] = self._child(self._predictions, model, MODES[estimator], name)
        if self._model != ("", ""):
            self._model_info.labels(*self._model).set(0)
        self._model = (model, recipe)
        self._model_info.labels(*self._model).set(1)
        self._loaded.set_to_current_time()
        self._ready.set(1)

    def begin(self) -> None:
        """A request is there; `request` tells its end."""
        self._in_work += 1

    def request(self, route: str, method: str, code: int, seconds: float) -> None:
        """Count a request that was answered, or given up; how long it took, if its route is timed."""
        counter = self._codes.get((route, method, code))
        (counter or self._requests.labels(route, method, code)).inc()
        if (route, method) in self._routes:
            self._routes[route, method].noted.append(seconds)
        self._in_work -= 1

    def stages(self, seconds: dict[str, float], images: int) -> None:
        """Count what was done for a request's images."""
        self._batches.noted.append(images)
        for stage, took in seconds.items():
            self._stages[stage].noted.append(took)

    def rejected(self, kind: str) -> None:
        """Count a request that got a problem."""
        self._rejected[kind].inc()

    def prediction(self, model: str, prediction: Prediction, decision: Decision | None) -> None:
        """Count a prediction by a model, and what was decided."""
        estimator, most = prediction.estimator, math.log(len(prediction.probabilities))
        self._classes[model[:_MODEL_DIGITS], estimator, prediction.label].noted.append(1)
        self._passes.noted.append(max(prediction.samples, 1))
        self._samples.noted.append(prediction.samples)
        self._entropies[estimator].noted.append(prediction.predictive_entropy / most)
        if prediction.uncertainty is not None:
            self._informations[estimator].noted.append(prediction.mutual_information / most)
        if prediction.agreement is not None:
            self._agreements.noted.append(prediction.agreement)
        if decision is None:
            return
        self._confidences.noted.append(max(decision.probabilities or prediction.probabilities))
        if decision.prediction_set is not None:
            self._set_sizes.noted.append(len(decision.prediction_set))
        if decision.reason is not None:
            self._abstentions[decision.reason].noted.append(1)
        if decision.novelty is not None:
            self._novelties.noted.append(max(decision.novelty.score, 0.0))  # a sum may not fall

    def feedback(self, *, right: int, wrong: int) -> None:
        """Count predictions whose true class was told."""
        self._outcomes["right"].inc(right)
        self._outcomes["wrong"].inc(wrong)

    def derive(self, collector: Collector) -> None:
        """Show what a collector tells, too: once for all workers."""
        self._derived.append(collector)

    def flush(self) -> None:
        """Count what was noted; from any thread."""
        self._in_progress.set(self._in_work)
        for metric in tuple(self._noting):
            metric.count()

    def expose(self) -> bytes:
        """Write all metrics in Prometheus' text format: of every worker under BentoML, else of this process."""
        self.flush()
        registry = CollectorRegistry()
        registry.register(self._registry if self._folder is None else _AllWorkers(self._folder))
        for collector in self._derived:
            registry.register(collector)
        return generate_latest(registry)

    def _counter(self, name: str, told: str, *labels: str) -> DeferredCounter:
        return DeferredCounter(f"mcd_{name}", told, labels, registry=self._registry)

    def _gauge(self, name: str, told: str, over_workers: str, *labels: str) -> Gauge:
        return Gauge(f"mcd_{name}", told, labels, registry=self._registry, multiprocess_mode=over_workers)  # type: ignore[arg-type]

    def _histogram(self, name: str, told: str, bounds: Sequence[float], *labels: str) -> DeferredHistogram:
        return DeferredHistogram(f"mcd_{name}", told, labels, registry=self._registry, buckets=tuple(bounds))

    def _child(self, metric: Noting, *labels: str) -> Noting:
        """Take notes for one of a metric's label sets."""
        child = metric.labels(*labels) if labels else metric
        self._noting[child] = None
        return child

    def _by_estimator(
        self, name: str, told: str, bounds: Sequence[float], estimators: Sequence[Estimator] = ESTIMATORS
    ) -> dict[Estimator, DeferredHistogram]:
        histogram = self._histogram(name, told, bounds, "mode")
        return {estimator: self._child(histogram, MODES[estimator]) for estimator in estimators}


class PredictionCollector(Collector):
    """Gauges of what the newest predictions of all workers tell, computed when they are asked for.

    Args:
        log: the predictions.
        reference: of the model that answers now.
        images: how many of a mode are compared with it.
    """

    def __init__(self, log: PredictionLog, reference: Callable[[], Reference], *, images: int) -> None:
        self._log, self._reference, self._images = log, reference, images

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        reference = self._reference()
        by_statistic = ("mode", "statistic")
        distance = _family("drift_score", "Kolmogorov-Smirnov distance of the window from the reference.", by_statistic)
        p_value = _family("drift_p_value", "Probability of such a distance where nothing drifts.", by_statistic)
        window = _family("drift_window_images", "Newest images that are compared with the reference.", ("mode",))
        accuracy = _family("estimated_accuracy_ratio", "Mean confidence of the window.", ("mode",))
        expected = _family("reference_accuracy_ratio", "Part of the test images that is right.", ("mode",))
        for estimator, found in reference.drifts(self._log, images=self._images):
            mode = MODES[estimator]
            window.add_metric([mode], found.images)
            accuracy.add_metric([mode], found.accuracy)
            expected.add_metric([mode], reference.accuracy(estimator))
            for statistic in found.distances:
                distance.add_metric([mode, statistic], found.distances[statistic])
                p_value.add_metric([mode, statistic], found.p_values[statistic])
        yield from (distance, p_value, window, accuracy, expected)
        for statistic, bounds in _BOUNDS.items():
            told = f"Part of the calibration's images with a {statistic} over ln(classes) up to the bound."
            cumulative = _family(f"reference_{statistic}_bucket_ratio", told, ("mode", "bound"))
            for estimator in reference.estimators():
                if statistic in reference.statistics(estimator):
                    parts = reference.cumulative(estimator, statistic, bounds)
                    for bound, part in zip(bounds, parts, strict=True):
                        cumulative.add_metric([MODES[estimator], str(bound)], part)
            yield cumulative
        known = summarize_feedback(self._log)
        yield _family("feedback_window_images", "Newest images whose true class was told.", value=known.images)
        yield _family("feedback_accuracy_ratio", "Part of those that is right.", value=known.accuracy)
        error = "Expected calibration error over those."
        yield _family("feedback_calibration_error_ratio", error, value=known.calibration_error)


def _family(name: str, told: str, labels: Sequence[str] | None = None, value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mcd_{name}", told, labels=labels, value=value)


class _AllWorkers(Collector):
    """Metrics of all workers, what dead ones have counted included; their gauges count no more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        with merged(self._folder) as files:
            return merge_files(files)
