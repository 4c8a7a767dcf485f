"""The service without metrics, drift and feedback, to measure their cost."""

from typing import Any

from service.monitoring.metrics import Metrics
from service.monitoring.prediction_log import PredictionLog
from service.service import UncertaintyService


def _nothing(*_: Any, **__: Any) -> None:
    """Count nothing."""


for counting in (Metrics.begin, Metrics.request, Metrics.stages, Metrics.prediction, Metrics.rejected):
    setattr(Metrics, counting.__name__, _nothing)
PredictionLog.add = _nothing  # type: ignore[method-assign]

__all__ = ["UncertaintyService"]
