"""Feedback: true classes of earlier predictions, sent by clients."""

import anyio
import numpy as np
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.http.body_reader import BodyReader
from service.http.request_body import parse_json
from service.http.request_context import RequestContext
from service.http.responses import json_response
from service.monitoring.metrics import Metrics
from service.monitoring.prediction_log import RIGHT, PredictionLog, Records, classes_key, key
from service.reload import ReloadableModel
from service.schemas.answers import FeedbackAnswer
from service.schemas.feedback import FeedbackRequest
from service.schemas.problems import Problem, invalid, invalid_document
from service.settings import Settings


class FeedbackEndpoint:
    """Endpoint that receives feedback.

    Args:
        model: the model that answers.
        bodies: reads request bodies.
        prediction_log: recent predictions, to which feedback can refer.
        metrics: count the outcomes.
        settings: limits.
    """

    def __init__(
        self,
        model: ReloadableModel,
        bodies: BodyReader,
        prediction_log: PredictionLog,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._model, self._bodies, self._settings = model, bodies, settings
        self._prediction_log, self._metrics = prediction_log, metrics

    async def __call__(self, request: Request) -> Response:
        """Record a true class."""
        body = await self._bodies.read(request)
        answer = await anyio.to_thread.run_sync(self._record, body)
        self._metrics.feedback(right=answer.right, wrong=answer.predictions - answer.right)
        RequestContext.of(request.scope).notes["bytes"] = len(body)
        return json_response(answer.model_dump_json().encode())

    def _record(self, body: bytes) -> FeedbackAnswer:
        """Read a body, and record the true class with the predictions that it refers to.

        Raises:
            Problem: 400 for a body that is not JSON; 404 for a prediction that is not in the log (any more), or of a
                model with other classes; 422 for an invalid body, an unknown class, or a request id with several
                images.
        """
        pipeline = self._model.pipeline
        try:
            feedback = FeedbackRequest.model_validate(parse_json(body, self._settings, pipeline.input))
        except ValidationError as error:
            raise invalid_document(error) from error
        classes = pipeline.classes
        true_class, among = feedback.class_of(classes), classes_key(classes)
        if feedback.image_hash is not None:
            field, value = "image", int(feedback.image_hash, 16)
        else:
            field, value = "request", key(feedback.request_id or "")

        def is_meant(ring: Records) -> np.ndarray:
            matches: np.ndarray = (ring[field] == value) & (ring["classes"] == among)
            return matches

        images = set(self._prediction_log.newest(is_meant)["image"].tolist())
        if not images:
            raise Problem(
                "unknown-prediction",
                "this is not among the recent predictions with these classes, which the service keeps",
            )
        if len(images) > 1:
            raise invalid(("request_id", f"belongs to {len(images)} images: send the image_hash of one instead"))
        outcomes = pipeline.coverage.note_class(self._prediction_log, is_meant, images.pop(), true_class)
        return FeedbackAnswer(predictions=len(outcomes), right=int((outcomes == RIGHT).sum()))
