"""Endpoint for documents about service and model: OpenAPI, model card, metadata of the Open Inference Protocol."""

import json
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response

from service.http.open_inference import metadata
from service.http.open_inference.encode import describe_outputs
from service.http.openapi import describe
from service.http.operations import Example
from service.http.responses import json_response
from service.http.routing import Route
from service.pipeline import Pipeline
from service.reload import ReloadableModel
from service.settings import Settings

DESCRIPTION, CARD = "/docs.json", "/card.json"


class Documents:
    """Endpoint that sends the documents, rebuilt whenever the model changes.

    Args:
        model: the model that answers.
        settings: limits.
    """

    def __init__(self, model: ReloadableModel, settings: Settings) -> None:
        self._model, self._settings = model, settings
        self._routes: list[Route] = []
        self._pipeline: Pipeline | None = None
        self._documents: dict[str, bytes] = {}

    def describe(self, routes: Iterable[Route]) -> None:
        """Build the documents; the OpenAPI description covers these routes."""
        self._routes = list(routes)
        self._make()

    async def __call__(self, request: Request) -> Response:
        """Send a document."""
        if self._model.pipeline is not self._pipeline:
            self._make()
        return json_response(self._documents[request.scope["path"]])

    def _make(self) -> None:
        pipeline = self._model.pipeline
        drawing, answer = pipeline.example()
        description = describe(self._routes, Example(drawing, answer.model_dump(mode="json")))
        self._documents = {
            DESCRIPTION: json.dumps(description).encode(),
            CARD: json.dumps(pipeline.card).encode(),
            **metadata.documents(
                describe_outputs(len(pipeline.classes)), pipeline.input.pixel_shape, self._settings.max_images
            ),
        }
        self._pipeline = pipeline
