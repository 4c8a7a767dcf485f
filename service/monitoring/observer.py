"""Counts and logs predictions."""

import time
from collections.abc import Sequence

from service.inference.decision import Decision
from service.inference.predictor import ESTIMATORS, Prediction
from service.inference.preparation import Input
from service.monitoring.metrics import Metrics
from service.monitoring.prediction_log import PredictionLog, Record, classes_key, key


class PredictionObserver:
    """Counts predictions in the metrics; adds those with a decision to the prediction log.

    Args:
        metrics: metrics of this worker.
        prediction_log: prediction log of this worker.
        classes: names of the model's classes.
    """

    def __init__(self, metrics: Metrics, prediction_log: PredictionLog, classes: Sequence[str]) -> None:
        self._metrics, self._prediction_log = metrics, prediction_log
        self._classes = classes_key(classes)

    def __call__(
        self, model: str, request_id: str, image: Input, prediction: Prediction, decision: Decision | None
    ) -> None:
        """Record a prediction of a model for a request."""
        self._metrics.prediction(model, prediction, decision)
        if decision is None:
            return
        self._prediction_log.add(
            Record(
                time=time.time(),
                request=key(request_id),
                image=int(image.image_hash, 16),
                model=key(model),
                classes=self._classes,
                predictive_entropy=prediction.predictive_entropy,
                mutual_information=prediction.mutual_information,
                confidence=max(decision.probabilities or prediction.probabilities),
                samples=prediction.samples,
                predicted=prediction.class_index,
                estimator=ESTIMATORS.index(prediction.estimator),
            ),
            decision.probabilities or (),
        )
