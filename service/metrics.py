"""What Prometheus sees."""

import math
import os
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0
from prometheus_client.multiprocess import MultiProcessCollector

from service.predictor import Mode, Prediction

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0

_LATENCY_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SAMPLE_BUCKETS = (0, 10, 30, 100, 300, 1000)
_RATIO_BUCKETS = tuple(step / 20 for step in range(1, 21))


class Metrics:
    """Counters of one worker, in a registry of their own; `expose` shows all workers of the server together."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mcd_http_requests", "HTTP requests answered.", ["route", "method", "code"], registry=self._registry
        )
        self._duration = Histogram(
            "mcd_http_request_duration_seconds",
            "Time from a request's first byte handled to its answer.",
            ["route", "method"],
            buckets=_LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._samples = Histogram(
            "mcd_samples_per_prediction",
            "Dropout masks of a prediction, 0 where nothing is sampled.",
            buckets=_SAMPLE_BUCKETS,
            registry=self._registry,
        )
        self._entropy = Histogram(
            "mcd_predictive_entropy_ratio",
            "Predictive entropy of a prediction over its maximum, the logarithm of the number of classes.",
            ["mode"],
            buckets=_RATIO_BUCKETS,
            registry=self._registry,
        )
        for mode in get_args(Mode):
            self._entropy.labels(mode)

    def request(self, route: str, method: str, code: int, seconds: float) -> None:
        """Count an answered request; the route is a template out of a fixed set, never a raw path."""
        self._requests.labels(route, method, code).inc()
        self._duration.labels(route, method).observe(seconds)

    def prediction(self, prediction: Prediction) -> None:
        """Count a prediction."""
        self._samples.observe(prediction.samples)
        ratio = prediction.predictive_entropy / math.log(len(prediction.probabilities))
        self._entropy.labels(prediction.mode).observe(ratio)

    def expose(self) -> bytes:
        """Write all metrics in Prometheus' text format: of every worker under BentoML, else of this process."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
