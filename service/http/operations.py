"""What OpenAPI says of each route: its purpose, what it takes, and examples from the model that answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.http.open_inference.metadata import MODEL, VERSION
from service.http.request_body import FILES, FORM, JSON, NPY
from service.inference.pixels import SIDE
from service.schemas.parameters import Parameters, RankParameters, Sampling

Json = dict[str, Any]

REFERENCE = "#/components/schemas/{model}"
_IMAGE_TYPES = [one for one in FILES if one.startswith("image/")]


@dataclass(frozen=True)
class Example:
    """An image that was predicted.

    Attributes:
        image: 28 x 28, 0..255.
        answer: what /predict answers to it.
    """

    image: Sequence[Sequence[int]]
    answer: Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """What OpenAPI says of a route.

    Attributes:
        summary: its purpose.
        media_type: of the answer.
        answer: name of the answer's schema.
        schema: the answer's schema where it has no name.
        parameters: those that the query takes.
        body: makes what the body may be, by media type; None for a route without a body.
        example: makes an example of the answer.
        meanings: of statuses that mean something else than for other routes.
    """

    summary: str
    media_type: str = JSON
    answer: str | None = None
    schema: Json | None = None
    parameters: type[Sampling] | None = None
    body: Callable[[Example], Json] | None = None
    example: Callable[[Example], Any] | None = None
    meanings: Mapping[int, str] = field(default_factory=dict)


def properties(kind: type[Sampling]) -> Json:
    """Schemas of parameters, by name."""
    found: Json = kind.model_json_schema(ref_template=REFERENCE)["properties"]
    return found


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


def _one_image(example: Example) -> Json:
    fields, file = properties(Parameters), {"type": "string", "format": "binary"}
    return {
        JSON: {
            "schema": _object({"image": _array(), **fields}, "image"),
            "example": {"image": example.image, "samples": 100},
        },
        FORM: {"schema": _object({"image": file, **fields}, "image")},
        **{media_type: _binary(media_type) for media_type in _IMAGE_TYPES},
        NPY: _binary(NPY),
    }


def _many_images(kind: type[Sampling], example: Example) -> Json:
    fields, file = properties(kind), {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file, "minItems": 1}
    several = {"type": "array", "items": _array(), "minItems": 1}
    return {
        JSON: {
            "schema": {"anyOf": [_object({"images": several, **fields}, "images"), several]},
            "example": {"images": [example.image], "samples": 100},
        },
        FORM: {"schema": _object({"images": files, **fields}, "images")},
        NPY: _binary(NPY),
    }


def _object(properties: Json, required: str) -> Json:
    return {"type": "object", "properties": properties, "required": [required], "additionalProperties": False}


def _inference(example: Example) -> Json:
    values = [value for row in example.image for value in row]
    tensor = {"name": "image", "shape": [1, SIDE, SIDE], "datatype": "UINT8", "data": values}
    request = {"inputs": [tensor], "parameters": {"samples": 100}, "outputs": [{"name": "probabilities"}]}
    return {JSON: {"schema": {"$ref": REFERENCE.format(model="InferenceRequest")}, "example": request}}


def _feedback(example: Example) -> Json:
    request = {"image_hash": example.answer["preprocessing"]["image_hash"], "label": example.answer["label"]}
    return {JSON: {"schema": {"$ref": REFERENCE.format(model="FeedbackRequest")}, "example": request}}


def _ranking(example: Example) -> Json:
    asked = {"by": "bald", "method": "masks", "samples": 100, "seed": 0}
    return asked | {"indices": [0], "scores": [example.answer["uncertainty"]["mutual_information"]], "errors": []}


PREDICT = Operation(
    "Predict the class of an image",
    answer="Answer",
    parameters=Parameters,
    body=_one_image,
    example=lambda example: example.answer,
)
PREDICT_BATCH = Operation(
    "Predict the classes of many images, each as if it were alone",
    answer="BatchAnswer",
    parameters=Parameters,
    body=lambda example: _many_images(Parameters, example),
    example=lambda example: {"results": [example.answer]},
)
RANK = Operation(
    "Order images by the value of their labels for training",
    answer="RankAnswer",
    parameters=RankParameters,
    body=lambda example: _many_images(RankParameters, example),
    example=_ranking,
)
FEEDBACK = Operation(
    "Send the true class of what was predicted",
    answer="FeedbackAnswer",
    body=_feedback,
    example=lambda _: {"predictions": 1, "right": 1},
    meanings={404: "There is no such prediction, or no more."},
)
INFER = Operation(
    "Infer, by the Open Inference Protocol",
    answer="InferenceResponse",
    body=_inference,
    example=lambda _: {"model_name": MODEL, "model_version": VERSION, "outputs": []},
)
OPEN_INFERENCE = Operation("Open Inference Protocol, version 2")
RELOAD = Operation(
    "Load the model that is on disk now",
    schema={"type": "object", "properties": {"model": {"type": "string"}}, "required": ["model"]},
    meanings={409: "The old model goes on answering."},
)
METRICS = Operation("Metrics for Prometheus", "text/plain")
LIVEZ = Operation("Whether the process lives", "text/plain")
READYZ = Operation("Whether requests can be answered", "text/plain", meanings={503: "Not yet."})
DESCRIPTION = Operation("This description")
CARD = Operation("The card of the model: classes, recipe, data, figures")
