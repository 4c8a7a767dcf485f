"""What the service answers, as OpenAPI 3.1."""

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
    400: "The body is not what its type says.",
    401: "The key is missing, or not known.",
    404: "There is nothing here.",
    405: "Another method.",
    408: "The body came too slowly.",
    413: "More bytes, pixels, images, or images x samples than are allowed.",
    414: "A longer query than is allowed.",
    415: "A media type, compression or image format that is not understood.",
    422: "A parameter or an image that breaks its rule; `errors` names each.",
    431: "More headers than are allowed.",
    500: "An unexpected error of the service.",
    503: "More work than is accepted at once: see Retry-After.",
    504: "The answer took longer than is allowed.",
}
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]


class FaultyParameter(BaseModel):
    """One parameter at fault."""

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
    """Describe routes and what each may answer; those without an operation are left out.

    Args:
        routes: all that there are.
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
            "summary": "Classifies clothing, and says how sure the network is.",
            "description": "**[See it in the browser](ui)**: your own images, one dot for each mask.",
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
        "X-Request-ID": {"description": "as sent, or made", "schema": {"type": "string"}},
        "Server-Timing": {"description": "milliseconds of each stage", "schema": {"type": "string"}},
    }
    return {
        "description": "Answered.",
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
