"""The OpenAPI 3.1 description of the service."""

from collections.abc import Iterable

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service.http.open_inference.schemas import InferenceRequest, InferenceResponse
from service.http.operations import REFERENCE, Example, Json, Operation, properties
from service.http.routing import Route
from service.schemas.answers import Answer, BatchAnswer, FeedbackAnswer, RankAnswer
from service.schemas.feedback import FeedbackRequest
from service.schemas.parameters import Parameters, RankParameters

_PROBLEM = "application/problem+json"
_MEANINGS = {
    400: "The body does not match its media type.",
    401: "The key is missing or not known.",
    404: "There is no such path.",
    405: "The method is not allowed.",
    408: "The body arrived too slowly.",
    413: "Too many bytes, pixels, images, or images x samples.",
    414: "The query is too long.",
    415: "The media type, compression or image format is not supported.",
    422: "A parameter or an image is invalid; `errors` lists invalid parameters.",
    431: "The headers are too many or too large.",
    500: "An unexpected error of the service.",
    503: "Too many requests at once: retry after the time in Retry-After.",
    504: "The deadline passed before the answer was ready.",
}
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]


class FaultyParameter(BaseModel):
    """One invalid parameter."""

    parameter: str
    detail: str


class ProblemDetails(BaseModel):
    """Why a request can't be answered (RFC 9457); `type` is stable."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FaultyParameter] = Field(default_factory=list)


def describe(routes: Iterable[Route], example: Example) -> Json:
    """Describe the routes and their possible answers; routes without an operation are omitted.

    Args:
        routes: all routes.
        example: an image and its answer.
    """
    _, schemas = models_json_schema(
        [
            *(
                (model, "serialization")
                for model in (Answer, BatchAnswer, RankAnswer, FeedbackAnswer, ProblemDetails, InferenceResponse)
            ),
            *((model, "validation") for model in (Parameters, RankParameters, FeedbackRequest, InferenceRequest)),
        ],
        ref_template=REFERENCE,
    )
    described = [(route, route.operation) for route in routes if route.operation is not None]
    components: Json = {"schemas": schemas["$defs"]}
    if any(route.keys for route, _ in described):
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mcd",
            "version": "1",
            "summary": "Classifies images, and reports the network's uncertainty.",
            "description": "**[Try it in the browser](ui)** with your own images: one dot for each dropout mask.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            route.path: {route.method.lower(): _operation(route, operation, example)} for route, operation in described
        },
        "components": components,
    }


def _operation(route: Route, operation: Operation, example: Example) -> Json:
    statuses = {405, *route.counted_statuses} & _MEANINGS.keys()
    described: Json = {
        "summary": operation.summary,
        "operationId": f"{route.method.lower()}{route.path.replace('/', '_')}",
        "responses": {
            "200": _answer(operation, example),
            **{str(status): _problem(route, operation, status) for status in sorted(statuses)},
        },
    }
    if operation.parameters is not None:
        described["parameters"] = [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in properties(operation.parameters).items()
        ]
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": operation.body(example)}
    if route.keys:
        described["security"] = _SECURITY
    return described


def _answer(operation: Operation, example: Example) -> Json:
    content: Json = {}
    if operation.schema is not None:
        content["schema"] = operation.schema
    if operation.answer is not None:
        content["schema"] = {"$ref": REFERENCE.format(model=operation.answer)}
    if operation.example is not None:
        content["example"] = operation.example(example)
    headers = {
        "X-Request-ID": {"description": "the client's id, or a generated one", "schema": {"type": "string"}},
        "Server-Timing": {"description": "duration of each stage in milliseconds", "schema": {"type": "string"}},
    }
    return {
        "description": "Success.",
        "content": {operation.media_type: content},
        **({"headers": headers} if operation.body else {}),
    }


def _problem(route: Route, operation: Operation, status: int) -> Json:
    described: Json = {"description": operation.meanings.get(status) or _MEANINGS[status]}
    if route.endpoint is None:  # BentoML's own answers
        return described
    described["headers"] = {"X-Request-ID": {"schema": {"type": "string"}}}
    if status == 503:
        described["headers"]["Retry-After"] = {"description": "seconds", "schema": {"type": "string"}}
    return described | {"content": {_PROBLEM: {"schema": {"$ref": REFERENCE.format(model="ProblemDetails")}}}}
