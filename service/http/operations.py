"""The OpenAPI operation of each route: summary, parameters, request body, and examples computed by the model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from service.http.open_inference.metadata import MODEL, VERSION
from service.http.request_body import FILES, FORM, JSON, NPY
from service.inference.pixels import Pixels, encoded_png
from service.schemas.parameters import Parameters, RankParameters, Sampling

Json = dict[str, Any]

REFERENCE = "#/components/schemas/{model}"
_MAX_VALUES = 4096  # of an array in the description
_IMAGE_TYPES = [one for one in FILES if one.startswith("image/")]


@dataclass(frozen=True)
class Example:
    """An example image and its answer.

    Attributes:
        pixels: the image, (H, W) or (H, W, 3), uint8.
        answer: the answer of /predict to it.
    """

    pixels: Pixels
    answer: Mapping[str, Any]

    @cached_property
    def image(self) -> Any:
        """The image as JSON: an array if that is short, else a PNG file in base64."""
        return self.pixels.tolist() if self.pixels.size <= _MAX_VALUES else encoded_png(self.pixels)


@dataclass(frozen=True)
class Operation:
    """The OpenAPI description of a route.

    Attributes:
        summary: the purpose of the route.
        media_type: media type of the answer.
        answer: name of the answer's schema.
        schema: the answer's schema, if it has no name.
        parameters: the query parameters.
        body: makes the schemas and examples of the body, by media type; None for a route without a body.
        example: makes an example of the answer.
        meanings: descriptions of statuses that differ from those of other routes.
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
    """Schemas of the parameters, by name."""
    schemas: Json = kind.model_json_schema(ref_template=REFERENCE)["properties"]
    return schemas


def _array(shape: Sequence[int]) -> Json:
    value = {"type": "number", "minimum": 0, "maximum": 255}
    nested = value
    for size in reversed(shape):
        nested = {"type": "array", "items": nested, "minItems": size, "maxItems": size}
    count = math.prod(shape)
    return {
        "anyOf": [
            nested,
            {"type": "array", "items": value, "minItems": count, "maxItems": count},
            {"type": "string", "contentEncoding": "base64", "description": "a PNG, JPEG or WebP file"},
        ]
    }


def _binary(media_type: str) -> Json:
    return {"schema": {"type": "string", "contentMediaType": media_type, "format": "binary"}}


def _one_image(example: Example) -> Json:
    fields, file = properties(Parameters), {"type": "string", "format": "binary"}
    return {
        JSON: {
            "schema": _object({"image": _array(example.pixels.shape), **fields}, "image"),
            "example": {"image": example.image, "samples": 100},
        },
        FORM: {"schema": _object({"image": file, **fields}, "image")},
        **{media_type: _binary(media_type) for media_type in _IMAGE_TYPES},
        NPY: _binary(NPY),
    }


def _many_images(kind: type[Sampling], example: Example) -> Json:
    fields, file = properties(kind), {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file, "minItems": 1}
    several = {"type": "array", "items": _array(example.pixels.shape), "minItems": 1}
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
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [example.image]}
    if not isinstance(example.image, str):
        shape, values = [1, *example.pixels.shape], example.pixels.ravel().tolist()
        tensor = {"name": "image", "shape": shape, "datatype": "UINT8", "data": values}
    request = {"inputs": [tensor], "parameters": {"samples": 100}, "outputs": [{"name": "probabilities"}]}
    return {JSON: {"schema": {"$ref": REFERENCE.format(model="InferenceRequest")}, "example": request}}


def _feedback(example: Example) -> Json:
    request = {"image_hash": example.answer["preprocessing"]["image_hash"], "label": example.answer["label"]}
    return {JSON: {"schema": {"$ref": REFERENCE.format(model="FeedbackRequest")}, "example": request}}


def _ranking(example: Example) -> Json:
    parameters = {"by": "bald", "method": "masks", "samples": 100, "seed": 0}
    return parameters | {"indices": [0], "scores": [example.answer["uncertainty"]["mutual_information"]], "errors": []}


PREDICT = Operation(
    "Predict the class of an image",
    answer="Answer",
    parameters=Parameters,
    body=_one_image,
    example=lambda example: example.answer,
)
PREDICT_BATCH = Operation(
    "Predict the classes of several images, each independently of the others",
    answer="BatchAnswer",
    parameters=Parameters,
    body=lambda example: _many_images(Parameters, example),
    example=lambda example: {"results": [example.answer]},
)
RANK = Operation(
    "Rank images by how informative their labels would be for training",
    answer="RankAnswer",
    parameters=RankParameters,
    body=lambda example: _many_images(RankParameters, example),
    example=_ranking,
)
FEEDBACK = Operation(
    "Send the true class of a predicted image",
    answer="FeedbackAnswer",
    body=_feedback,
    example=lambda _: {"predictions": 1, "right": 1},
    meanings={404: "The prediction is not known, or no longer kept."},
)
INFER = Operation(
    "Predict through the Open Inference Protocol",
    answer="InferenceResponse",
    body=_inference,
    example=lambda _: {"model_name": MODEL, "model_version": VERSION, "outputs": []},
)
OPEN_INFERENCE = Operation("Open Inference Protocol, version 2")
RELOAD = Operation(
    "Load the model that is now on disk",
    schema={"type": "object", "properties": {"model": {"type": "string"}}, "required": ["model"]},
    meanings={409: "The new model can't be served; the previous one stays in use."},
)
METRICS = Operation("Metrics for Prometheus", "text/plain")
LIVEZ = Operation("Whether the process is alive", "text/plain")
READYZ = Operation("Whether the service is ready for requests", "text/plain", meanings={503: "Not ready yet."})
DESCRIPTION = Operation("This description")
CARD = Operation("The model card: classes, training recipe, data and metrics")
