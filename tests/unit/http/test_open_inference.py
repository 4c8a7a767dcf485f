"""The Open Inference Protocol: requests that are read or refused, and answers."""

import json
import struct
import sys
from pathlib import Path
from typing import get_args
from zipfile import ZipFile

import jsonschema_rs
import numpy as np
import pytest
from conftest import missing
from files import png
from hypothesis import given, settings
from hypothesis import strategies as st

from model.calibration import SetMethod
from model.input_spec import InputSpec
from service.http.open_inference import metadata
from service.http.open_inference.decode import read_inference
from service.http.open_inference.encode import check_outputs
from service.http.open_inference.schemas import InferenceResponse
from service.schemas.problems import Problem
from service.settings import Settings

INFER = "/v2/models/mcd/infer"
LIMITS = Settings()


@pytest.fixture(scope="module")
def pixels_B(served) -> np.ndarray:
    return served.pixels_B[:5]


@pytest.fixture(scope="module")
def spec(served) -> InputSpec:
    return served.artifact.input


@pytest.fixture(scope="module")
def good(spec) -> dict:
    """A tensor of one black image."""
    return tensor_of(np.zeros((1, *spec.pixel_shape), int), "UINT8")


def request_of(tensor: dict, **more: object) -> bytes:
    return json.dumps({"inputs": [{"name": "image", **tensor}], **more}).encode()


def tensor_of(values: np.ndarray, datatype: str) -> dict:
    return {"shape": list(values.shape), "datatype": datatype, "data": values.tolist()}


def refused(body: bytes, spec: InputSpec, header: str | None = None) -> Problem:
    with pytest.raises(Problem) as found:
        check_outputs(read_inference(body, header, LIMITS, spec))
    assert found.value.status in {400, 422}
    return found.value


def in_layout(pixels_B: np.ndarray, spec: InputSpec, layout: str) -> np.ndarray:
    """Images with the channels last, first, or as rows of values."""
    if layout == "flat":
        return pixels_B.reshape(len(pixels_B), -1)
    if layout == "NHWC":
        return pixels_B
    return np.moveaxis(pixels_B, -1, 1) if spec.channels > 1 else pixels_B[:, None]


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "flat"])
@pytest.mark.parametrize("is_flat", [True, False])
def test_numeric_tensors_are_images_in_every_layout(pixels_B, spec, layout, is_flat):
    arranged = np.ascontiguousarray(in_layout(pixels_B, spec, layout))
    for values, datatype in ((arranged, "UINT8"), (arranged / 255, "FP32"), (arranged / 255, "FP64")):
        tensor, shape = tensor_of(values, datatype), values.shape
        if is_flat:
            tensor["data"] = values.ravel().tolist()
        assert np.array_equal(read_inference(request_of(tensor), None, LIMITS, spec).images, pixels_B)
        dtype = {"UINT8": "u1", "FP32": "<f4", "FP64": "<f8"}[datatype]
        raw = values.astype(dtype).tobytes()
        head = request_of({"shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}})
        assert np.array_equal(read_inference(head + raw, str(len(head)), LIMITS, spec).images, pixels_B)


def test_a_single_image_needs_no_batch_axis(pixels_B, spec):
    for shape in (spec.pixel_shape, (spec.values,)):
        tensor = tensor_of(pixels_B[0].reshape(shape), "UINT8")
        assert np.array_equal(read_inference(request_of(tensor), None, LIMITS, spec).images, pixels_B[:1])


def test_elements_of_bytes_are_image_files(spec):
    raw = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)
    head = request_of({"shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}})
    assert read_inference(head + raw, str(len(head)), LIMITS, spec).images == [b"abc", b""]
    tensor = {"shape": [1], "datatype": "BYTES", "data": ["YWJj"]}
    assert read_inference(request_of(tensor), None, LIMITS, spec).images == [b"abc"]


def inconsistent(spec: InputSpec) -> list[dict]:
    """Changes of a tensor of one image."""
    shape, count = list(spec.pixel_shape), spec.values
    shapes = [
        [2, *shape], [*shape[:-1], shape[-1] - 1], [1, *shape, 1], [-1, *shape], [], [2**31, *shape], [2**40, *shape],
        "1", [1.5, *shape], [True, *shape], [1, count + 1],
    ]  # fmt: skip
    values = [None, "x", [[0] * 28] * 27, [[[[[0]]]]]]
    values += [[one] * count for one in (256, -1, 0.5, 10**400, "0", None, True)]
    return [
        *({"shape": one} for one in shapes), *({"data": one} for one in values),
        {"shape": [0, *shape], "data": []}, {"datatype": "FP16"}, {"datatype": "BYTES"}, {"name": "other"},
        {"datatype": "FP32", "data": [1.5] * count}, {"datatype": "FP64", "data": [1e308] * count},
        {"parameters": {"binary_data_size": count}}, {"parameters": {"binary_data_size": -1}, "data": None},
        {"parameters": 5}, {"shape": [1], "datatype": "BYTES", "data": [5]},
        {"shape": [1], "datatype": "BYTES", "data": ["?"]},
    ]  # fmt: skip


def test_inconsistent_tensors_are_refused(spec, good):
    for change in inconsistent(spec):
        refused(request_of(good | change), spec)


@pytest.mark.parametrize(
    "more",
    [
        {"inputs": []}, {"inputs": "twice"}, {"outputs": [{"name": "other"}]}, {"outputs": 5},
        {"outputs": [{"name": "label", "parameters": {"classification": 3}}]}, {"outputs": [{}]}, {"id": 5},
        {"outputs": [{"name": "confidence", "parameters": {"classification": -1}}]}, {"parameters": {"samples": 1}},
        {"parameters": {"other": 1}}, {"parameters": {"dtype": "float"}}, {"parameters": {"return_samples": True}},
        {"parameters": {"return_pixels": True}},
        {"parameters": []}, {"outputs": [{"name": "sample_probabilities"}]}, {"parameters": {"tolerance": 10**400}},
        {"outputs": [{"name": "label"}, {"name": "label"}]}, {"outputs": [{"name": "variance"}]},
        {"parameters": {"coverage": 10**400}},
    ],
)  # fmt: skip
def test_unknown_outputs_and_parameters_are_refused(spec, good, more):
    if more == {"inputs": "twice"}:
        more = {"inputs": [good | {"name": "image"}] * 2}
    refused(request_of(good, **more), spec)


@pytest.mark.parametrize("header", ["-1", "x", "1e3", "999999", "9" * 30, "", "5"])
def test_an_invalid_header_length_is_refused(spec, good, header):
    refused(request_of(good), spec, header)


@pytest.mark.parametrize("raw", [b"abc", b"\x05\0\0\0abc", struct.pack("<I", 2**32 - 1), b"\x01\0\0\0ab"])
def test_elements_of_a_wrong_length_are_refused(spec, raw):
    head = request_of({"shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}})
    refused(head + raw, spec, str(len(head)))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3000), st.binary(max_size=6), st.one_of(st.none(), st.integers(-1, 4000).map(str)))
def test_changed_requests_are_read_or_refused(spec, good, cut, insertion, header):
    body = request_of(good, parameters={"samples": 10}, outputs=[{"name": "variance"}])
    status = 200
    try:
        check_outputs(read_inference(body[:cut] + insertion + body[cut:], header, LIMITS, spec))
    except Problem as problem:
        status = problem.status
    assert status in {200, 400, 422}


def test_errors_name_the_image_and_follow_both_formats(client, pixels_B):
    good = [png(pixels_B[0]), b"GIF89a"]
    raw = b"".join(struct.pack("<I", len(one)) + one for one in good)
    head = request_of({"shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}})
    response = client.post(INFER, content=head + raw, headers={metadata.HEADER_LENGTH: str(len(head))})
    problem = response.json()
    assert (response.status_code, problem["status"]) == (415, 415)
    assert problem["error"] == problem["detail"]
    assert problem["detail"].startswith("image 1: ")
    for path in ("/v2/models/other", "/v2/models/mcd/versions/2/infer"):
        missing = client.post(path)
        assert (missing.status_code, missing.json()["error"]) == (404, missing.json()["detail"])
    assert client.get(INFER).headers["allow"] == "POST"
    assert client.get("/v2/").json() == client.get("/v2").json()


def test_answers_have_the_fields_of_the_protocol(client, pixels_B, good):
    body = request_of(tensor_of(pixels_B, "UINT8"), id="x", parameters={"samples": 20})
    answer = client.post(INFER, content=body).json()
    assert InferenceResponse.model_validate(answer, strict=True).id == "x"
    assert answer.keys() == {"model_name", "model_version", "id", "outputs"}
    for tensor in answer["outputs"]:
        assert tensor.keys() == {"name", "shape", "datatype", "data"}
        assert len(tensor["data"]) == np.prod(tensor["shape"])
        assert tensor["shape"][0] == 5
    assert "id" not in client.post(INFER, content=request_of(good)).json()


@pytest.fixture(scope="module")
def described() -> dict:
    """The protocol's OpenAPI description, in MLServer's wheel, which `make install` puts beside the environment."""
    wheels = list((Path(sys.prefix) / "share").glob("mlserver-*.whl"))
    if not wheels:
        missing("mlserver's wheel, which has the protocol's description: make install brings it")
    with ZipFile(wheels[0]) as wheel:
        schemas = json.loads(wheel.read("mlserver/rest/openapi/dataplane.json"))["components"]
    # "bytes" is no type of JSON's; tensors are lists here.
    schemas["schemas"]["TensorData"] = {"type": "array"}
    return schemas


def conforms(described: dict, name: str, document: object) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": described}
    return jsonschema_rs.validator_for(schema).is_valid(document)


@pytest.mark.parametrize("params", [{}, {"samples": 20}, {"method": "moments"}])
def test_answers_conform_to_the_protocols_own_schemas(client, served, pixels_B, described, params):
    if params.get("method", "masks") not in served.methods:
        params = {"samples": "auto"}
    body = request_of(tensor_of(pixels_B, "UINT8"), id="x", parameters=params)
    assert conforms(described, "InferenceRequest", json.loads(body))
    answer = client.post(INFER, content=body).json()
    assert conforms(described, "InferenceResponse", answer)
    for path in metadata.model_paths():
        assert conforms(described, "MetadataModelResponse", client.get(path).json())
    assert conforms(described, "MetadataServerResponse", client.get("/v2").json())
    assert conforms(described, "MetadataModelErrorResponse", client.get("/v2/models/other").json())
    refusal = client.post(INFER, content=b"{}").json()
    assert isinstance(refusal.pop("error"), str)
    for name in ("InferenceResponse", "MetadataModelResponse", "MetadataServerResponse", "MetadataModelErrorResponse"):
        assert not conforms(described, name, refusal)
    assert not conforms(described, "InferenceResponse", answer | {"outputs": [{"name": "label", "data": [1]}]})


def test_limits_of_work_and_time_hold(client, spec, good):
    many = np.zeros((101, *spec.pixel_shape), np.uint8)
    head = request_of(
        {"shape": many.shape, "datatype": "UINT8", "parameters": {"binary_data_size": many.size}},
        parameters={"samples": 1000},
    )
    response = client.post(INFER, content=head + many.tobytes(), headers={metadata.HEADER_LENGTH: str(len(head))})
    assert (response.status_code, response.json()["type"]) == (413, "urn:mcd:problem:too-much-work")
    patient = request_of(good, parameters={"timeout": 10**400})
    assert client.post(INFER, content=patient).status_code == 200
    late = request_of(
        tensor_of(np.zeros((50, *spec.pixel_shape), int), "UINT8"), parameters={"samples": 1000, "timeout": 1}
    )
    response = client.post(INFER, content=late)
    assert (response.status_code, response.json()["type"]) == (504, "urn:mcd:problem:deadline-exceeded")


@pytest.mark.parametrize(("whole", "one", "is_raw"), [(True, False, False), (False, True, True), (True, None, True)])
def test_each_output_can_be_binary_or_json(client, good, whole, one, is_raw):
    asked = {
        "inputs": [{"name": "image", **good}],
        "parameters": {"binary_data_output": whole},
        "outputs": [{"name": "confidence", "parameters": {} if one is None else {"binary_data": one}}],
    }
    response = client.post("/v2/models/mcd/infer", json=asked)
    assert ("inference-header-content-length" in response.headers) == is_raw


def test_additions_of_serializers_and_codecs_are_ignored(client, good):
    tensor = {"name": "image", **good}
    expected = client.post("/v2/models/mcd/infer", json={"inputs": [tensor]}).json()
    codec = {"content_type": "np"}
    for asked in (
        {"inputs": [tensor], "parameters": None, "id": None, "outputs": None},
        {"inputs": [tensor | {"parameters": None}], "outputs": []},
        {"inputs": [tensor | {"parameters": codec}], "parameters": codec | {"headers": {"a": "b"}}},
    ):
        assert client.post("/v2/models/mcd/infer", json=asked).json() == expected
    named = [{"name": "label", "parameters": None}, {"name": "confidence", "parameters": codec}]
    found = client.post("/v2/models/mcd/infer", json={"inputs": [tensor], "outputs": named}).json()
    assert [output["name"] for output in found["outputs"]] == ["label", "confidence"]


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "flat"])
@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_tensors_are_answered_as_files_are(client, pixels_B, spec, layout, datatype):
    params = {"samples": 20, "seed": 1}
    alone = [client.post("/predict", content=png(pixels), params=params).json() for pixels in pixels_B]
    values = in_layout(pixels_B, spec, layout) / (255 if datatype == "FP32" else 1)
    tensor = tensor_of(values if datatype == "FP32" else values.astype(int), datatype)
    answer = client.post(INFER, content=request_of(tensor, parameters=params)).json()
    found = {one["name"]: np.reshape(one["data"], one["shape"]).tolist() for one in answer["outputs"]}
    for name in ("probabilities", "class_index", "label", "confidence"):
        assert found[name] == [one[name] for one in alone], name
    (described,) = client.get("/v2/models/mcd").json()["inputs"]
    assert described == {"name": "image", "datatype": "UINT8", "shape": [-1, *spec.pixel_shape]}


@pytest.mark.parametrize("method", get_args(SetMethod))
def test_sets_of_each_method_are_those_of_a_batch(client, served, pixels_B, method):
    options = {"set_method": method, "samples": 10}
    body = request_of(tensor_of(pixels_B, "UINT8"), parameters=options)
    outputs = {one["name"]: one for one in client.post(INFER, content=body).json()["outputs"]}
    answers = client.post("/predict_batch", json={"images": pixels_B.tolist()} | options).json()["results"]
    members_BC = np.array(outputs["prediction_set"]["data"]).reshape(outputs["prediction_set"]["shape"])
    for members_C, answer in zip(members_BC, answers, strict=True):
        named = {name for name, is_member in zip(served.artifact.classes, members_C, strict=True) if is_member}
        assert named == set(answer["prediction_set"])
