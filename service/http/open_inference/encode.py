"""Encodes answers as tensors of the protocol, in JSON or as raw bytes."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_json

from service.http.open_inference.decode import Inference
from service.http.open_inference.metadata import MODEL, SAMPLES, VERSION
from service.http.open_inference.schemas import RequestOutput
from service.schemas.answers import Answer, UncertaintyAnswer
from service.schemas.problems import Problem, invalid, short

_RAW: dict[str, np.dtype[Any]] = {"FP64": np.dtype("<f8"), "INT64": np.dtype("<i8"), "BOOL": np.dtype("?")}

Values = np.ndarray | list[str] | None


@dataclass(frozen=True)
class _Output:
    """An output of the model.

    Attributes:
        datatype: datatype of the tensor.
        per_class: whether it has a value for each class.
        of: makes the values from answers and class names; None if an answer does not have the value.
        needs_spread: whether it is available with masks or moments only.
    """

    datatype: str
    per_class: bool
    of: Callable[[Sequence[Answer], Sequence[str]], Values]
    needs_spread: bool = False


def _each(name: str) -> Callable[[Sequence[Answer], Sequence[str]], Values]:
    return lambda answers, _: np.array([getattr(answer, name) for answer in answers])


def _spread(name: str) -> Callable[[Sequence[Answer], Sequence[str]], Values]:
    def of(answers: Sequence[Answer], _: Sequence[str]) -> Values:
        values = [answer.uncertainty and getattr(answer.uncertainty, name) for answer in answers]
        return None if any(one is None for one in values) else np.array(values)

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
    values = [answer.sample_probabilities for answer in answers]
    if any(one is None or len(one) != len(values[0] or ()) for one in values):
        return None  # not requested, or a different number of masks for each image (samples=auto)
    return np.array(values).swapaxes(0, 1)


_OUTPUTS: Mapping[str, _Output] = {
    "probabilities": _Output("FP64", per_class=True, of=_each("probabilities")),
    "label": _Output("BYTES", per_class=False, of=_labels),
    "class_index": _Output("INT64", per_class=False, of=_each("class_index")),
    "confidence": _Output("FP64", per_class=False, of=_each("confidence")),
    "abstain": _Output("BOOL", per_class=False, of=_each("abstain")),
    "prediction_set": _Output("BOOL", per_class=True, of=_prediction_set),
    "novelty": _Output("FP64", per_class=False, of=_novelty),
    **{
        name: _Output("FP64", per_class=name in {"variance", "standard_error"}, of=_spread(name), needs_spread=True)
        for name in UncertaintyAnswer.model_fields
    },
    SAMPLES: _Output("FP64", per_class=True, of=_sample_probabilities),
}


def check_outputs(inference: Inference) -> None:
    """Refuse unavailable outputs before any work is done.

    Raises:
        Problem: 422 for an unknown or unavailable output.
    """
    names = [output.name for output in inference.outputs or []]
    if len(set(names)) < len(names):
        raise invalid(("outputs", "must have different names"))
    for output in inference.outputs or []:
        if output.name not in _OUTPUTS:
            raise invalid(("outputs", f"has no {short(output.name)}; available are {', '.join(_OUTPUTS)}"))
        kind = _OUTPUTS[output.name]
        if output.parameters.classification and not kind.per_class:
            raise invalid(("outputs", f"{output.name} has no values per class to classify"))
        if kind.needs_spread and not inference.parameters.has_spread:
            raise invalid(("outputs", f"{output.name} is available with masks or moments only"))


def write_inference(
    inference: Inference, answers: Sequence[Answer | Problem], classes: Sequence[str]
) -> tuple[bytes, int | None]:
    """Encode the body of the answer.

    Args:
        inference: the request.
        answers: for each image its answer, or the problem with it.
        classes: the class names.

    Returns:
        The body, and the length of its JSON in bytes if raw tensors follow, else None.

    Raises:
        Problem: the problem of the first invalid image; 422 for an output that not all answers have.
    """
    for index, answer in enumerate(answers):
        if isinstance(answer, Problem):
            raise Problem(answer.kind, f"image {index}: {answer.detail}", errors=answer.errors)
    good = [answer for answer in answers if isinstance(answer, Answer)]
    outputs = inference.outputs if inference.outputs is not None else [RequestOutput(name=name) for name in _OUTPUTS]
    tensors, raw = [], []
    for output in outputs:
        values = _OUTPUTS[output.name].of(good, classes)
        if values is None:
            if inference.outputs is None:
                continue
            needs = "a calibration, or the same number of masks for all images"
            raise invalid(("outputs", f"{output.name} is not available for every image: it needs {needs}"))
        tensor, data = _tensor(output, values, classes, is_binary=inference.is_binary)
        tensors.append(tensor)
        raw.append(data)
    document = {"model_name": MODEL, "model_version": VERSION, "outputs": tensors}
    head = to_json(document | ({} if inference.id is None else {"id": inference.id}))
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
    binary_data = output.parameters.binary_data
    if not (is_binary if binary_data is None else binary_data):
        return tensor | {"data": flat if isinstance(flat, list) else flat.tolist()}, b""
    data = b"".join(map(_element, flat)) if isinstance(flat, list) else flat.astype(_RAW[datatype]).tobytes()
    return tensor | {"parameters": {"binary_data_size": len(data)}}, data


def _element(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded


def _classified(values: np.ndarray, count: int, classes: Sequence[str]) -> Any:
    """The highest values of the last axis as "value:index:label", in Triton's format."""
    order = np.argsort(-values.astype(float), axis=-1, kind="stable")[..., :count]
    top = np.take_along_axis(values.astype(float), order, axis=-1)
    texts = [f"{value:f}:{index}:{classes[int(index)]}" for value, index in zip(top.flat, order.flat, strict=True)]
    return np.array(texts, dtype=object).reshape(order.shape).tolist()


def describe_outputs(classes: int) -> list[dict[str, Any]]:
    """Name, datatype and shape of each output; -1 stands for any size.

    Args:
        classes: number of the model's classes.
    """
    return [
        {
            "name": name,
            "datatype": kind.datatype,
            "shape": [*([-1] if name == SAMPLES else []), -1, *([classes] if kind.per_class else [])],
        }
        for name, kind in _OUTPUTS.items()
    ]
