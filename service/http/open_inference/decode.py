"""Decodes requests of the protocol into images and parameters."""

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from model.input_spec import InputSpec
from service.http.open_inference.metadata import HEADER_LENGTH, SAMPLES
from service.http.open_inference.schemas import InferenceRequest, RequestInput, RequestOutput
from service.http.request_body import check_count, image_of, parse_json
from service.inference.upload import RawImage
from service.schemas.parameters import Parameters
from service.schemas.problems import Problem, invalid, invalid_document, short
from service.settings import Settings

_NUMBERS: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
_LENGTH_BYTES = 4  # before each element of BYTES
_ALL_CLASSES = 2**31  # tensors have all classes
# Further parameters of Triton's client; only binary_data_output and timeout have an effect.
_CLIENT_PARAMETERS = {"binary_data_output", "timeout", "priority", "sequence_id", "sequence_start", "sequence_end"}
_CLIENT_PARAMETERS |= {"content_type", "headers"}  # MLServer's client; redundant with the datatypes


@dataclass(frozen=True)
class Inference:
    """A decoded inference request: images, parameters, and the requested outputs.

    Attributes:
        id: id of the request, repeated in the answer.
        images: the images in order; a `Problem` takes the place of an invalid one.
        parameters: parameters of all images.
        outputs: the requested outputs; None for all available outputs.
        is_binary: whether outputs are raw bytes by default.
        seconds: the client's timeout; None without one.
    """

    id: str | None
    images: list[RawImage | Problem]
    parameters: Parameters
    outputs: list[RequestOutput] | None
    is_binary: bool
    seconds: float | None


def read_inference(body: bytes, header_length: str | None, limits: Settings, spec: InputSpec) -> Inference:
    """Read the body of an inference request: JSON, followed by raw tensors.

    Args:
        body: the complete body.
        header_length: the header with the length of the JSON in bytes; None if the body is JSON only.
        limits: limits on JSON and images.
        spec: what the network takes.

    Raises:
        Problem: 400 for a body that is not JSON, 422 for an invalid request.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isdecimal() and len(header_length) < 20 and int(header_length) <= length):
            raise Problem("malformed-body", f"{HEADER_LENGTH} must be 0..{length}, got {short(header_length)}")
        length = int(header_length)
    try:
        request = InferenceRequest.model_validate(parse_json(body[:length], limits, spec))
    except ValidationError as error:
        raise invalid_document(error) from error
    (tensor,) = request.inputs
    if "binary_data_size" in tensor.parameters:
        images = _read_binary(tensor, body[length:], limits, spec)
    else:
        images = _read_data(tensor, limits, spec)
    if not images:
        raise invalid(("inputs", "must have at least one image"))
    return Inference(
        request.id,
        images,
        _parameters(request),
        request.outputs or None,
        is_binary=request.parameters.get("binary_data_output") is True,
        seconds=_timeout_seconds(request.parameters.get("timeout")),
    )


def _parameters(request: InferenceRequest) -> Parameters:
    parameters = {name: value for name, value in request.parameters.items() if name not in _CLIENT_PARAMETERS}
    for name in ("dtype", "return_samples"):
        if name in parameters:
            raise invalid((name, "must be left out: the tensors' datatypes and names determine it"))
    for name in ("return_pixels", "top_k"):
        if name in parameters:
            raise invalid((name, "can be used with /predict and /predict_batch only"))
    if request.outputs is not None and any(output.name == SAMPLES for output in request.outputs):
        parameters["return_samples"] = True
    return Parameters.gather([*parameters.items(), ("top_k", _ALL_CLASSES)])


def _timeout_seconds(microseconds: object) -> float | None:
    if isinstance(microseconds, int) and not isinstance(microseconds, bool) and 0 < microseconds < 2**63:
        return microseconds / 1e6
    return None


def _image_count(tensor: RequestInput, spec: InputSpec) -> int:
    """Number of images by the tensor's shape, which is checked."""
    shape = tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        if len(shape) == 1 or shape[1:] == (1,):
            return shape[0]
        raise invalid(("inputs", f"of BYTES must have the shape [B], got {list(shape)}"))
    count = spec.count(shape)
    if count is None:
        layouts = (spec.pixel_shape, spec.shape, (spec.values,))
        first, second, last = (f"[{', '.join(map(str, ('B', *layout)))}]" for layout in layouts)
        raise invalid(("inputs", f"must have the shape {first}, {second} or {last}, got {list(shape)}"))
    return count


def _read_data(tensor: RequestInput, limits: Settings, spec: InputSpec) -> list[RawImage | Problem]:
    count, values = _image_count(tensor, spec), list(_flat(tensor.data or [], depth=len(tensor.shape)))
    if tensor.datatype == "BYTES":
        _check_count(len(values), count, "elements")
        check_count(count, limits)
        return [image_of(value) for value in values]
    _check_count(len(values), count * spec.values, "values")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise invalid(("inputs", "must have numbers as data"))
    try:
        return _pixels(np.array(values, dtype=np.float64), tensor, spec)
    except OverflowError as error:
        raise invalid(("inputs", f"has a number that is too large: {error}")) from error


def _flat(data: list[Any], depth: int) -> Sequence[Any]:
    """Values in row-major order; they may be nested by the shape, or flat."""
    for _ in range(depth - 1):
        if not (data and all(isinstance(part, list) for part in data)):
            break
        data = [value for part in data for value in part]
    return data


def _read_binary(tensor: RequestInput, raw: bytes, limits: Settings, spec: InputSpec) -> list[RawImage | Problem]:
    count, size = _image_count(tensor, spec), tensor.parameters["binary_data_size"]
    if tensor.data is not None or size != len(raw):
        raise invalid(
            ("inputs", f"must have binary_data_size {len(raw)}, the number of bytes after the JSON, and no data")
        )
    if tensor.datatype == "BYTES":
        if count * _LENGTH_BYTES <= len(raw):
            check_count(count, limits)
        images: list[RawImage | Problem] = list(itertools.islice(_elements(raw), count + 1))
        _check_count(len(images), count, "elements")
        return images
    dtype = _NUMBERS[tensor.datatype]
    _check_count(len(raw), count * spec.values * dtype.itemsize, "bytes")
    return _pixels(np.frombuffer(raw, dtype).astype(np.float64), tensor, spec)


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


def _check_count(count: int, expected: int, unit: str) -> None:
    if count != expected:
        raise invalid(("inputs", f"must have {expected} {unit} by their shape, got {count}"))


def _pixels(values: np.ndarray, tensor: RequestInput, spec: InputSpec) -> list[RawImage | Problem]:
    datatype = tensor.datatype
    top = 255 if datatype == "UINT8" else 1
    is_whole = datatype != "UINT8" or bool((values == np.rint(values)).all())
    if not (is_whole and bool(((values >= 0) & (values <= top)).all())):
        raise invalid(("inputs", f"of {datatype} must have {'whole ' if top == 255 else ''}numbers in 0..{top}"))
    return list(spec.as_pixels(np.rint(values * (255 / top)).astype(np.uint8), tensor.shape))
