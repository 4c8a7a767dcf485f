"""Feedback: true classes, which clients send when they learn them."""

from collections.abc import Sequence
from typing import Annotated, Self

import anyio
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import Response

from service.http.body_reader import BodyReader
from service.http.request_body import parse_json
from service.http.request_context import RequestContext
from service.http.responses import json_response
from service.monitoring.metrics import Metrics
from service.monitoring.prediction_log import RIGHT, PredictionLog, key
from service.reload import ReloadableModel
from service.schemas.answers import FeedbackAnswer
from service.schemas.problems import Problem, invalid, invalid_document, short
from service.settings import Settings


class FeedbackRequest(BaseModel):
    """The true class, by `label` or `class_index`, of the image that `request_id` or `image_hash` names."""

    model_config = ConfigDict(strict=True, extra="forbid")

    request_id: Annotated[str, Field(description="X-Request-ID of the answer, if it was of one image")] | None = None
    image_hash: (
        Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$"), Field(description="of the answer's preprocessing")]
        | None
    ) = None
    label: Annotated[str, Field(description="name of the class")] | None = None
    class_index: Annotated[int, Field(ge=0, description="its place")] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for one, other in (("request_id", "image_hash"), ("label", "class_index")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ValueError(f"must have either {one} or {other}")
        return self

    @classmethod
    def read(cls, body: bytes, limits: Settings) -> Self:
        """Read a body.

        Raises:
            Problem: 400 for one that is not JSON, 422 for what is no feedback.
        """
        try:
            return cls.model_validate(parse_json(body, limits))
        except ValidationError as error:
            raise invalid_document(error) from error

    def note(self, log: PredictionLog, classes: Sequence[str]) -> FeedbackAnswer:
        """Note it with the predictions that it is about.

        Raises:
            Problem: 404 for a prediction that isn't known, or no more; 422 for a class that isn't, or an id of several
                images.
        """
        true_class = self._class(classes)
        if self.image_hash is not None:
            field, value = "image", int(self.image_hash, 16)
        else:
            field, value = "request", key(self.request_id or "")
        images = set(log.newest(lambda ring: ring[field] == value)["image"].tolist())
        if not images:
            raise Problem("unknown-prediction", "this is not among the newest predictions, which are all that are kept")
        if len(images) > 1:
            raise invalid(("request_id", f"is of {len(images)} images: name one by its image_hash"))
        outcomes = log.note_class(field, value, true_class)
        return FeedbackAnswer(predictions=len(outcomes), right=int((outcomes == RIGHT).sum()))

    def _class(self, classes: Sequence[str]) -> int:
        if self.label is not None:
            if self.label not in classes:
                raise invalid(("label", f"must be one of {', '.join(classes)}, got {short(self.label)}"))
            return classes.index(self.label)
        index = self.class_index or 0
        if index >= len(classes):
            raise invalid(("class_index", f"must be 0..{len(classes) - 1}, got {index}"))
        return index


class FeedbackEndpoint:
    """Answers requests that have feedback.

    Args:
        model: that answers.
        bodies: reads those of requests.
        prediction_log: predictions that feedback may be about.
        metrics: where outcomes are counted.
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
        """Note a true class."""
        body = await self._bodies.read(request)
        feedback = await anyio.to_thread.run_sync(FeedbackRequest.read, body, self._settings)
        answer = await anyio.to_thread.run_sync(feedback.note, self._prediction_log, self._model.pipeline.classes)
        self._metrics.feedback(right=answer.right, wrong=answer.predictions - answer.right)
        RequestContext.of(request.scope).notes["bytes"] = len(body)
        return json_response(answer.model_dump_json().encode())
