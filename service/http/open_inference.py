"""The Open Inference Protocol, version 2, over REST: tensors in, tensors out, in JSON or as raw bytes.

The protocol: https://github.com/kserve/open-inference-protocol; binary tensors and classification are Triton's
extensions of it (https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""

import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from service.http.request_body import Image, check_count, image_of, parse_json
from service.inference.images import SIDE
from service.schemas.answers import Answer, UncertaintyAnswer
from service.schemas.parameters import Parameters
from service.schemas.problems import Problem, invalid, invalid_document, short
from service.settings import Settings

MODEL, VERSION = "mcd", "1"
HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data", "classification"]

_NUMBERS: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
_RAW: dict[str, np.dtype[Any]] = {"FP64": np.dtype("<f8"), "INT64": np.dtype("<i8"), "BOOL": np.dtype("?")}
_LENGTH_BYTES = 4  # before each element of BYTES
_PIXELS = SIDE * SIDE
_SHAPES = ((SIDE, SIDE), (1, SIDE, SIDE), (_PIXELS,))  # of one image
# What Triton's client sends beside our parameters; a deadline is the only one that means something here.
_TOLERATED = {"binary_data_output", "timeout", "priority", "sequence_id", "sequence_start", "sequence_end"}
_TOLERATED |= {"content_type", "headers"}  # MLServer's, of what the datatypes say already
_SAMPLES = "sample_probabilities"


def _or_missing(kind: Any) -> BeforeValidator:
    """Take null for a missing object: many serializers write it for what isn't there."""
    return BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=kind | None)


class RequestInput(BaseModel):
    """A tensor that is sent: nested or flat data, or raw bytes behind the JSON, as many as `binary_data_size` says."""

    model_config = ConfigDict(strict=True)

    name: Literal["image"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=8)]
    datatype: Literal["UINT8", "FP32", "FP64", "BYTES"]
    parameters: Annotated[dict[str, Any], _or_missing(dict[str, Any])] = Field(default_factory=dict)
    data: list[Any] | None = None


class OutputParameters(BaseModel):
    """How an output is wanted: as raw bytes, or as so many of the highest classes."""

    model_config = ConfigDict(strict=True)

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0)] = 0


class RequestOutput(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: Annotated[OutputParameters, _or_missing(OutputParameters)] = Field(default_factory=OutputParameters)


class InferenceRequest(BaseModel):
    """What is sent; `parameters` are those of /predict, but `dtype`, `return_samples` and `return_pixels`."""

    model_config = ConfigDict(strict=True)

    id: str | None = None
    parameters: Annotated[dict[str, Any], _or_missing(dict[str, Any])] = Field(default_factory=dict)
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=1)]
    outputs: list[RequestOutput] | None = None


class ResponseOutput(BaseModel):
    """A tensor that is answered; without data its bytes follow the JSON, as many as `binary_data_size` says."""

    name: str
    shape: list[int]
    datatype: Literal["FP64", "INT64", "BOOL", "BYTES"]
    data: list[float | int | bool | str] | None = None
    parameters: dict[str, int] = Field(default_factory=dict)


class InferenceResponse(BaseModel):
    """What is answered."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


@dataclass(frozen=True)
class Inference:
    """What is asked: images, parameters, and which outputs in which form.

    Attributes:
        id: given back.
        images: in order.
        parameters: of all of them.
        outputs: asked for by name; None for all that there are.
        is_binary: whether outputs are raw bytes unless they say otherwise.
        seconds: until the client stops waiting, if it says so.
    """

    id: str | None
    images: list[Image]
    parameters: Parameters
    outputs: list[RequestOutput] | None
    is_binary: bool
    seconds: float | None


def read(body: bytes, header_length: str | None, limits: Settings) -> Inference:
    """Read the body of an inference request: JSON, and raw tensors behind the bytes that the header counts.

    Raises:
        Problem: 400 for a body that is not JSON, 422 for what is not such a request.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isdecimal() and len(header_length) < 20 and int(header_length) <= length):
            raise Problem("malformed-body", f"{HEADER_LENGTH} must be 0..{length}, got {short(header_length)}")
        length = int(header_length)
    try:
        asked = InferenceRequest.model_validate(parse_json(body[:length], limits))
    except ValidationError as error:
        raise invalid_document(error) from error
    (tensor,) = asked.inputs
    if "binary_data_size" in tensor.parameters:
        images = _read_binary(tensor, body[length:], limits)
    else:
        images = _read_data(tensor, limits)
    if not images:
        raise invalid(("inputs", "must have an image"))
    return Inference(
        asked.id,
        images,
        _parameters(asked),
        asked.outputs or None,
        is_binary=asked.parameters.get("binary_data_output") is True,
        seconds=_deadline(asked.parameters.get("timeout")),
    )


def _parameters(asked: InferenceRequest) -> Parameters:
    given = {name: value for name, value in asked.parameters.items() if name not in _TOLERATED}
    for name in ("dtype", "return_samples"):
        if name in given:
            raise invalid((name, "is told by the tensors' datatypes and names"))
    if "return_pixels" in given:
        raise invalid(("return_pixels", "goes with /predict and /predict_batch only"))
    if asked.outputs is not None and any(output.name == _SAMPLES for output in asked.outputs):
        given["return_samples"] = True
    return Parameters.gather(given.items())


def _deadline(microseconds: object) -> float | None:
    if isinstance(microseconds, int) and not isinstance(microseconds, bool) and 0 < microseconds < 2**63:
        return microseconds / 1e6
    return None


def _shape(tensor: RequestInput) -> int:
    """How many images there are."""
    shape = tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        if len(shape) == 1 or shape[1:] == (1,):
            return shape[0]
        raise invalid(("inputs", f"of BYTES must have the shape [B], got {list(shape)}"))
    if shape in {(SIDE, SIDE), (_PIXELS,)}:
        return 1
    if shape[1:] in _SHAPES:
        return shape[0]
    expected = f"[B, {SIDE}, {SIDE}], [B, 1, {SIDE}, {SIDE}] or [B, {_PIXELS}]"
    raise invalid(("inputs", f"must have the shape {expected}, got {list(shape)}"))


def _read_data(tensor: RequestInput, limits: Settings) -> list[Image]:
    count, values = _shape(tensor), list(_flat(tensor.data or [], depth=len(tensor.shape)))
    if tensor.datatype == "BYTES":
        _check_count(len(values), count, "elements")
        check_count(count, limits)
        return [image_of(value) for value in values]
    _check_count(len(values), count * _PIXELS, "values")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise invalid(("inputs", "must have numbers as data"))
    try:
        return _pixels(np.array(values, dtype=np.float64), tensor.datatype)
    except OverflowError as error:
        raise invalid(("inputs", f"has a number that is too large: {error}")) from error


def _flat(data: list[Any], depth: int) -> Sequence[Any]:
    """Values in row-major order, nested as the shape is or not at all."""
    for _ in range(depth - 1):
        if not (data and all(isinstance(part, list) for part in data)):
            break
        data = [value for part in data for value in part]
    return data


def _read_binary(tensor: RequestInput, raw: bytes, limits: Settings) -> list[Image]:
    count, size = _shape(tensor), tensor.parameters["binary_data_size"]
    if tensor.data is not None or size != len(raw):
        raise invalid(("inputs", f"must have the binary_data_size of what follows, {len(raw)}, and no data"))
    if tensor.datatype == "BYTES":
        if count * _LENGTH_BYTES <= len(raw):
            check_count(count, limits)
        images: list[Image] = list(itertools.islice(_elements(raw), count + 1))
        _check_count(len(images), count, "elements")
        return images
    dtype = _NUMBERS[tensor.datatype]
    _check_count(len(raw), count * _PIXELS * dtype.itemsize, "bytes")
    return _pixels(np.frombuffer(raw, dtype).astype(np.float64), tensor.datatype)


def _elements(raw: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(raw):
        if start + _LENGTH_BYTES > len(raw):
            raise invalid(("inputs", "end within the length of an element"))
        (length,) = struct.unpack_from("<I", raw, start)
        start += _LENGTH_BYTES + length
        if start > len(raw):
            raise invalid(("inputs", "end within an element"))
        yield raw[start - length : start]


def _check_count(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise invalid(("inputs", f"must have {expected} {what} by their shape, got {found}"))


def _pixels(values: np.ndarray, datatype: str) -> list[Image]:
    top = 255 if datatype == "UINT8" else 1
    is_whole = datatype != "UINT8" or bool((values == np.rint(values)).all())
    if not (is_whole and bool(((values >= 0) & (values <= top)).all())):
        raise invalid(("inputs", f"of {datatype} must have {'whole ' if top == 255 else ''}numbers in 0..{top}"))
    return list(np.rint(values * (255 / top)).astype(np.uint8).reshape(-1, SIDE, SIDE))


Values = np.ndarray | list[str] | None


@dataclass(frozen=True)
class _Kind:
    """An output: its datatype, whether it has a value for each class, and how it is made of answers, None of some."""

    datatype: str
    per_class: bool
    of: Callable[[Sequence[Answer], Sequence[str]], Values]
    needs_spread: bool = False


def _each(name: str) -> Callable[[Sequence[Answer], Sequence[str]], Values]:
    return lambda answers, _: np.array([getattr(answer, name) for answer in answers])


def _spread(name: str) -> Callable[[Sequence[Answer], Sequence[str]], Values]:
    def of(answers: Sequence[Answer], _: Sequence[str]) -> Values:
        found = [answer.uncertainty and getattr(answer.uncertainty, name) for answer in answers]
        return None if any(one is None for one in found) else np.array(found)

    return of


def _labels(answers: Sequence[Answer], _: Sequence[str]) -> Values:
    return [answer.label for answer in answers]


def _novelty(answers: Sequence[Answer], _: Sequence[str]) -> Values:
    scores = [answer.novelty.score for answer in answers if answer.novelty is not None]
    return np.array(scores) if len(scores) == len(answers) else None


def _prediction_set(answers: Sequence[Answer], classes: Sequence[str]) -> Values:
    sets = [answer.prediction_set for answer in answers if answer.prediction_set is not None]
    return np.array([[name in one for name in classes] for one in sets]) if len(sets) == len(answers) else None


def _sample_probabilities(answers: Sequence[Answer], _: Sequence[str]) -> Values:
    found = [answer.sample_probabilities for answer in answers]
    if any(one is None or len(one) != len(found[0] or ()) for one in found):
        return None  # not asked for, or as many as it took for each image
    return np.array(found).swapaxes(0, 1)


_OUTPUTS: Mapping[str, _Kind] = {
    "probabilities": _Kind("FP64", per_class=True, of=_each("probabilities")),
    "label": _Kind("BYTES", per_class=False, of=_labels),
    "class_index": _Kind("INT64", per_class=False, of=_each("class_index")),
    "confidence": _Kind("FP64", per_class=False, of=_each("confidence")),
    "abstain": _Kind("BOOL", per_class=False, of=_each("abstain")),
    "prediction_set": _Kind("BOOL", per_class=True, of=_prediction_set),
    "novelty": _Kind("FP64", per_class=False, of=_novelty),
    **{
        name: _Kind("FP64", per_class=name in {"variance", "standard_error"}, of=_spread(name), needs_spread=True)
        for name in UncertaintyAnswer.model_fields
    },
    _SAMPLES: _Kind("FP64", per_class=True, of=_sample_probabilities),
}


def check_outputs(asked: Inference) -> None:
    """Refuse outputs that there never are, before any work is done.

    Raises:
        Problem: 422.
    """
    names = [output.name for output in asked.outputs or []]
    if len(set(names)) < len(names):
        raise invalid(("outputs", "must be named once each"))
    for output in asked.outputs or []:
        if output.name not in _OUTPUTS:
            raise invalid(("outputs", f"has no {short(output.name)}; known are {', '.join(_OUTPUTS)}"))
        kind = _OUTPUTS[output.name]
        if output.parameters.classification and not kind.per_class:
            raise invalid(("outputs", f"{output.name} has no classes to choose from"))
        if kind.needs_spread and not asked.parameters.has_spread:
            raise invalid(("outputs", f"{output.name} is not there without masks or moments"))


def write(asked: Inference, answers: Sequence[Answer | Problem], classes: Sequence[str]) -> tuple[bytes, int | None]:
    """Make the body of the answer, and the length of its JSON if raw tensors follow.

    Raises:
        Problem: that of the first image that has one; 422 for an output that these answers don't have.
    """
    for index, answer in enumerate(answers):
        if isinstance(answer, Problem):
            raise Problem(answer.kind, f"image {index}: {answer.detail}", errors=answer.errors)
    good = [answer for answer in answers if isinstance(answer, Answer)]
    named = asked.outputs if asked.outputs is not None else [RequestOutput(name=name) for name in _OUTPUTS]
    tensors, raw = [], []
    for output in named:
        values = _OUTPUTS[output.name].of(good, classes)
        if values is None:
            if asked.outputs is None:
                continue
            needs = "a calibration, or one number of masks"
            raise invalid(("outputs", f"{output.name} is not there for each image: it needs {needs}"))
        tensor, data = _tensor(output, values, classes, is_binary=asked.is_binary)
        tensors.append(tensor)
        raw.append(data)
    document = {"model_name": MODEL, "model_version": VERSION, "outputs": tensors}
    head = to_json(document | ({} if asked.id is None else {"id": asked.id}))
    tail = b"".join(raw)
    is_raw = any("data" not in tensor for tensor in tensors)
    return head + tail, len(head) if is_raw else None


def _tensor(
    output: RequestOutput, values: np.ndarray | list[str], classes: Sequence[str], *, is_binary: bool
) -> tuple[dict[str, Any], bytes]:
    datatype, count = _OUTPUTS[output.name].datatype, output.parameters.classification
    if count and isinstance(values, np.ndarray):
        datatype, values = "BYTES", _classified(values, count, classes)
    shape = list(np.shape(values))
    tensor: dict[str, Any] = {"name": output.name, "shape": shape, "datatype": datatype}
    flat = np.asarray(values, dtype=object).ravel().tolist() if datatype == "BYTES" else np.ravel(values)
    wanted = output.parameters.binary_data
    if not (is_binary if wanted is None else wanted):
        return tensor | {"data": flat if isinstance(flat, list) else flat.tolist()}, b""
    data = b"".join(map(_element, flat)) if isinstance(flat, list) else flat.astype(_RAW[datatype]).tobytes()
    return tensor | {"parameters": {"binary_data_size": len(data)}}, data


def _element(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded


def _classified(values: np.ndarray, count: int, classes: Sequence[str]) -> Any:
    """The highest of the last axis as "value:index:label", in Triton's way."""
    order = np.argsort(-values.astype(float), axis=-1, kind="stable")[..., :count]
    top = np.take_along_axis(values.astype(float), order, axis=-1)
    texts = [f"{value:f}:{index}:{classes[int(index)]}" for value, index in zip(top.flat, order.flat, strict=True)]
    return np.array(texts, dtype=object).reshape(order.shape).tolist()


def pages(classes: int, max_images: int) -> dict[str, bytes]:
    """What a model of so many classes says of itself, by path: server and model, health, how they are spoken to."""
    outputs = [
        {
            "name": name,
            "datatype": kind.datatype,
            "shape": [*([-1] if name == _SAMPLES else []), -1, *([classes] if kind.per_class else [])],
        }
        for name, kind in _OUTPUTS.items()
    ]
    server = {"name": MODEL, "version": VERSION, "extensions": EXTENSIONS}
    model = {
        "name": MODEL,
        "versions": [VERSION],
        "platform": "mcd_monte_carlo_dropout",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, SIDE, SIDE]}],
        "outputs": outputs,
    }
    found: dict[str, Any] = {
        "/v2": server,
        "/v2/": server,
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"live": True, "ready": True},
        "/v2/models": {"models": [MODEL]},
    }
    for path in model_paths():
        found[path] = model
        found[f"{path}/ready"] = {"name": MODEL, "ready": True}
        found[f"{path}/config"] = {"name": MODEL, "platform": model["platform"], "max_batch_size": max_images}
    return {path: to_json(document) for path, document in found.items()}


def model_paths() -> tuple[str, str]:
    """Where the model is, without and with its version."""
    return f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/{VERSION}"


def is_v2(path: str) -> bool:
    """Whether a path belongs to the protocol, which wants errors to be told in its own way too."""
    return path == "/v2" or path.startswith("/v2/")
