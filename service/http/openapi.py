"""What the service answers, as OpenAPI 3.1."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service.http import open_inference as v2
from service.http.feedback import Feedback
from service.http.request_body import FILES, FORM, JSON, NPY
from service.inference.images import SIDE
from service.schemas.answers import Answer, BatchAnswer, FeedbackAnswer, RankAnswer
from service.schemas.parameters import Parameters, RankParameters, Sampling

Json = dict[str, Any]

_PROBLEM = "application/problem+json"
_REFERENCE = "#/components/schemas/{model}"
_IMAGE_TYPES = [one for one in FILES if one.startswith("image/")]

# What may be wrong with a request that has images, and where the limits are settings.
_PROBLEMS = {
    400: "The body is not what its type says.",
    405: "Another method.",
    408: "The body came too slowly.",
    413: "More bytes, pixels, images, or images x samples than are allowed.",
    414: "A longer query than is allowed.",
    415: "A media type, compression or image format that is not understood.",
    422: "A parameter or an image that breaks its rule; `errors` names each.",
    431: "More headers than are allowed.",
    500: "A fault of the service.",
    503: "More work than is taken on at once: see Retry-After.",
    504: "The answer took longer than is allowed.",
}


_PROBLEM_OF_KEYS = "The key is missing, or not known."


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


def describe(*, example: Mapping[str, Any], image: Sequence[Sequence[int]], with_keys: bool, with_admin: bool) -> Json:
    """Describe every route and what it may answer.

    Args:
        example: what /predict answers to the image.
        image: an example, 28 x 28.
        with_keys: whether requests need a key.
        with_admin: whether there is an administration.
    """
    _, schemas = models_json_schema(
        [
            *(
                (model, "serialization")
                for model in (Answer, BatchAnswer, RankAnswer, FeedbackAnswer, ProblemDetails, v2.InferenceResponse)
            ),
            *((model, "validation") for model in (Parameters, RankParameters, Feedback, v2.InferenceRequest)),
        ],
        ref_template=_REFERENCE,
    )
    ranked = {"by": "bald", "method": "masks", "samples": 100, "seed": 0}
    ranked |= {"indices": [0], "scores": [example["uncertainty"]["mutual_information"]], "errors": []}
    told = {"image_hash": example["preprocessing"]["image_hash"], "label": example["label"]}
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "mcd",
            "version": "1",
            "summary": "Classifies clothing, and says how sure the network is.",
            "description": "**[See it in the browser](ui)**: your own images, one dot for each mask.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/predict": _post(
                "Predict the class of an image", Parameters, _one_image(image), "Answer", example, with_keys=with_keys
            ),
            "/predict_batch": _post(
                "Predict the classes of many images, each as if it were alone",
                Parameters,
                _many_images(Parameters, image),
                "BatchAnswer",
                {"results": [example]},
                with_keys=with_keys,
            ),
            "/rank": _post(
                "Order images by how much their labels would tell",
                RankParameters,
                _many_images(RankParameters, image),
                "RankAnswer",
                ranked,
                with_keys=with_keys,
            ),
            "/feedback": _post(
                "Tell the true class of what was predicted",
                None,
                {JSON: {"schema": {"$ref": _REFERENCE.format(model="Feedback")}, "example": told}},
                "FeedbackAnswer",
                {"predictions": 1, "right": 1},
                with_keys=with_keys,
                problems={404: "There is no such prediction, or no more."},
            ),
            "/metrics": _get("Metrics for Prometheus", "text/plain"),
            "/livez": _get("Whether the process lives", "text/plain"),
            "/readyz": _get("Whether requests can be answered", "text/plain", {"503": {"description": "Not yet."}}),
            "/docs.json": _get("This description", JSON),
            "/card.json": _get("The card of the model: classes, recipe, data, figures", JSON),
            **_inference(image, with_keys=with_keys),
        },
        "components": {"schemas": schemas["$defs"]},
    }
    if with_admin:
        document["paths"]["/admin/reload"] = _reload()
    if with_keys or with_admin:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return document


def _inference(image: Sequence[Sequence[int]], *, with_keys: bool) -> Json:
    """The routes of the Open Inference Protocol."""
    values = [value for row in image for value in row]
    tensor = {"name": "image", "shape": [1, SIDE, SIDE], "datatype": "UINT8", "data": values}
    reference = {"$ref": _REFERENCE.format(model="InferenceRequest")}
    example = {"inputs": [tensor], "parameters": {"samples": 100}, "outputs": [{"name": "probabilities"}]}
    body = {JSON: {"schema": reference, "example": example}}
    answered = {"model_name": v2.MODEL, "model_version": v2.VERSION, "outputs": []}
    pages = (path for path in v2.pages(1, 1) if path != "/v2/")
    paths = {path: _get("Open Inference Protocol, version 2", JSON) for path in pages}
    summary = "Infer, by the Open Inference Protocol"
    for path in v2.model_paths():
        asked = _post(summary, None, body, "InferenceResponse", answered, with_keys=with_keys)
        asked["post"]["operationId"] = f"infer{path.replace('/', '_')}"
        paths[f"{path}/infer"] = asked
    return paths


def _post(
    summary: str,
    kind: type[Sampling] | None,
    content: Json,
    answer: str,
    example: Mapping[str, Any],
    *,
    with_keys: bool,
    problems: Mapping[int, str] = MappingProxyType({}),
) -> Json:
    all_problems = _PROBLEMS | ({401: _PROBLEM_OF_KEYS} if with_keys else {}) | dict(problems)
    headers = {
        "X-Request-ID": {"description": "as sent, or made", "schema": {"type": "string"}},
        "Server-Timing": {"description": "milliseconds of each stage", "schema": {"type": "string"}},
    }
    return {
        "post": {
            "summary": summary,
            "operationId": answer,
            "parameters": [
                {"name": name, "in": "query", "required": False, "schema": schema}
                for name, schema in (_properties(kind) if kind else {}).items()
            ],
            "requestBody": {"required": True, "content": content},
            "responses": {
                "200": {
                    "description": "Answered.",
                    "headers": headers,
                    "content": {JSON: {"schema": {"$ref": _REFERENCE.format(model=answer)}, "example": example}},
                },
                **{str(status): _problem(status, description) for status, description in sorted(all_problems.items())},
            },
            **({"security": [{"bearer": []}, {"header": []}]} if with_keys else {}),
        }
    }


def _reload() -> Json:
    model = {"type": "object", "properties": {"model": {"type": "string"}}, "required": ["model"]}
    problems = {
        401: _PROBLEM_OF_KEYS,
        405: _PROBLEMS[405],
        409: "The old model goes on answering.",
    }
    return {
        "post": {
            "summary": "Take the model that is on disk now",
            "responses": {
                "200": {"description": "Its identity.", "content": {JSON: {"schema": model}}},
                **{str(status): _problem(status, description) for status, description in problems.items()},
            },
            "security": [{"bearer": []}, {"header": []}],
        }
    }


def _problem(status: int, description: str) -> Json:
    headers: Json = {"X-Request-ID": {"schema": {"type": "string"}}}
    if status == 503:
        headers["Retry-After"] = {"description": "seconds", "schema": {"type": "string"}}
    return {
        "description": description,
        "headers": headers,
        "content": {_PROBLEM: {"schema": {"$ref": _REFERENCE.format(model="ProblemDetails")}}},
    }


def _get(summary: str, media_type: str, others: Json | None = None) -> Json:
    answered = {"description": "Answered.", "content": {media_type: {}}}
    return {"get": {"summary": summary, "responses": {"200": answered, **(others or {})}}}


def _properties(kind: type[Sampling]) -> Json:
    properties: Json = kind.model_json_schema(ref_template=_REFERENCE)["properties"]
    return properties


def _array() -> Json:
    value = {"type": "number", "minimum": 0, "maximum": 255}
    row = {"type": "array", "items": value, "minItems": SIDE, "maxItems": SIDE}
    return {
        "anyOf": [
            {"type": "array", "items": row, "minItems": SIDE, "maxItems": SIDE},
            {"type": "array", "items": value, "minItems": SIDE**2, "maxItems": SIDE**2},
            {"type": "string", "contentEncoding": "base64", "description": "a PNG, JPEG or WebP file"},
        ]
    }


def _binary(media_type: str) -> Json:
    return {"schema": {"type": "string", "contentMediaType": media_type, "format": "binary"}}


def _one_image(image: Sequence[Sequence[int]]) -> Json:
    fields, file = _properties(Parameters), {"type": "string", "format": "binary"}
    return {
        JSON: {
            "schema": _object({"image": _array(), **fields}, "image"),
            "example": {"image": image, "samples": 100},
        },
        FORM: {"schema": _object({"image": file, **fields}, "image")},
        **{media_type: _binary(media_type) for media_type in _IMAGE_TYPES},
        NPY: _binary(NPY),
    }


def _many_images(kind: type[Sampling], image: Sequence[Sequence[int]]) -> Json:
    fields, file = _properties(kind), {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file, "minItems": 1}
    several = {"type": "array", "items": _array(), "minItems": 1}
    return {
        JSON: {
            "schema": {"anyOf": [_object({"images": several, **fields}, "images"), several]},
            "example": {"images": [image], "samples": 100},
        },
        FORM: {"schema": _object({"images": files, **fields}, "images")},
        NPY: _binary(NPY),
    }


def _object(properties: Json, required: str) -> Json:
    return {"type": "object", "properties": properties, "required": [required], "additionalProperties": False}
