"""The Open Inference Protocol: reading and writing by themselves, and Triton's own clients at a real server."""

import asyncio
import json
import struct
import sys
from pathlib import Path
from zipfile import ZipFile

import jsonschema_rs
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from conftest import missing
from files import png
from hypothesis import given, settings
from hypothesis import strategies as st

from service.http.open_inference import metadata
from service.http.open_inference.decode import read_inference
from service.http.open_inference.encode import check_outputs
from service.http.open_inference.schemas import InferenceResponse
from service.schemas.problems import Problem
from service.settings import Settings
from training.data import FashionMNIST

INFER = "/v2/models/mcd/infer"
LIMITS = Settings()


@pytest.fixture(scope="module")
def pixels_BHW(fashion: FashionMNIST) -> np.ndarray:
    return fashion.test.images_B[:5].numpy().copy()


def request_of(tensor: dict, **more: object) -> bytes:
    return json.dumps({"inputs": [{"name": "image", **tensor}], **more}).encode()


def tensor_of(values: np.ndarray, datatype: str) -> dict:
    return {"shape": list(values.shape), "datatype": datatype, "data": values.tolist()}


def refused(body: bytes, header: str | None = None) -> Problem:
    with pytest.raises(Problem) as found:
        check_outputs(read_inference(body, header, LIMITS))
    assert found.value.status in {400, 422}
    return found.value


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 1, 28, 28), (5, 784)])
@pytest.mark.parametrize("is_flat", [True, False])
def test_numbers_are_images_in_every_shape(pixels_BHW, shape, is_flat):
    for values, datatype in ((pixels_BHW, "UINT8"), (pixels_BHW / 255, "FP32"), (pixels_BHW / 255, "FP64")):
        tensor = tensor_of(values.reshape(shape), datatype)
        if is_flat:
            tensor["data"] = values.ravel().tolist()
        assert np.array_equal(read_inference(request_of(tensor), None, LIMITS).images, pixels_BHW)
        dtype = {"UINT8": "u1", "FP32": "<f4", "FP64": "<f8"}[datatype]
        raw = values.astype(dtype).tobytes()
        head = request_of({"shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}})
        assert np.array_equal(read_inference(head + raw, str(len(head)), LIMITS).images, pixels_BHW)


def test_one_image_needs_no_axis_for_others(pixels_BHW):
    for shape in ((28, 28), (784,)):
        tensor = tensor_of(pixels_BHW[0].reshape(shape), "UINT8")
        assert np.array_equal(read_inference(request_of(tensor), None, LIMITS).images, pixels_BHW[:1])


def test_bytes_are_files():
    raw = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)
    head = request_of({"shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}})
    assert read_inference(head + raw, str(len(head)), LIMITS).images == [b"abc", b""]
    assert read_inference(request_of({"shape": [1], "datatype": "BYTES", "data": ["YWJj"]}), None, LIMITS).images == [
        b"abc"
    ]


ZEROS = np.zeros((1, 28, 28), int)
GOOD = tensor_of(ZEROS, "UINT8")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, 28, 28]}, {"shape": [28, 27]}, {"shape": [1, 28, 28, 1]}, {"shape": [-1, 28, 28]}, {"shape": []},
        {"shape": [2**31, 28, 28]}, {"shape": [2**40, 28, 28]}, {"shape": "1"}, {"shape": [0, 28, 28], "data": []},
        {"shape": [1.5, 28, 28]}, {"shape": [True, 28, 28]}, {"datatype": "FP16"}, {"datatype": "BYTES"},
        {"data": None},
        {"data": "x"}, {"data": [[0] * 28] * 27}, {"data": [256] * 784}, {"data": [-1] * 784}, {"data": [0.5] * 784},
        {"data": [10**400] * 784}, {"data": ["0"] * 784}, {"data": [None] * 784}, {"data": [True] * 784},
        {"data": [[[[[0]]]]]},
        {"name": "other"},
        {"datatype": "FP32", "data": [1.5] * 784}, {"datatype": "FP64", "data": [1e308] * 784},
        {"parameters": {"binary_data_size": 784}}, {"parameters": {"binary_data_size": -1}, "data": None},
        {"parameters": 5}, {"shape": [1], "datatype": "BYTES", "data": [5]},
        {"shape": [1], "datatype": "BYTES", "data": ["?"]},
    ],
)  # fmt: skip
def test_tensors_that_are_not_what_they_say_are_refused(change):
    refused(request_of(GOOD | change))


@pytest.mark.parametrize(
    "more",
    [
        {"inputs": []}, {"inputs": [GOOD | {"name": "image"}] * 2}, {"outputs": [{"name": "other"}]}, {"outputs": 5},
        {"outputs": [{"name": "label", "parameters": {"classification": 3}}]}, {"outputs": [{}]}, {"id": 5},
        {"outputs": [{"name": "confidence", "parameters": {"classification": -1}}]}, {"parameters": {"samples": 1}},
        {"parameters": {"other": 1}}, {"parameters": {"dtype": "float"}}, {"parameters": {"return_samples": True}},
        {"parameters": {"return_pixels": True}},
        {"parameters": []}, {"outputs": [{"name": "sample_probabilities"}]}, {"parameters": {"tolerance": 10**400}},
        {"outputs": [{"name": "label"}, {"name": "label"}]}, {"outputs": [{"name": "variance"}]},
        {"parameters": {"coverage": 10**400}},
    ],
)  # fmt: skip
def test_requests_that_ask_for_what_there_is_not_are_refused(more):
    refused(request_of(GOOD, **more))


@pytest.mark.parametrize("header", ["-1", "x", "1e3", "999999", "9" * 30, "", "5"])
def test_a_length_of_the_json_that_is_none_is_refused(header):
    refused(request_of(GOOD), header)


@pytest.mark.parametrize("raw", [b"abc", b"\x05\0\0\0abc", struct.pack("<I", 2**32 - 1), b"\x01\0\0\0ab"])
def test_elements_that_do_not_fit_are_refused(raw):
    head = request_of({"shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}})
    refused(head + raw, str(len(head)))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3000), st.binary(max_size=6), st.one_of(st.none(), st.integers(-1, 4000).map(str)))
def test_whatever_comes_is_read_or_a_clients_mistake(cut, insertion, header):
    body = request_of(GOOD, parameters={"samples": 10}, outputs=[{"name": "variance"}])
    status = 200
    try:
        check_outputs(read_inference(body[:cut] + insertion + body[cut:], header, LIMITS))
    except Problem as problem:
        status = problem.status
    assert status in {200, 400, 422}


def predicted(client, pixels: np.ndarray, **params: object) -> dict:
    return client.post("/predict", content=png(pixels), params=params).json()


def input_of(values: np.ndarray, datatype: str, *, is_binary: bool) -> triton.InferInput:
    tensor = triton.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=is_binary)
    return tensor


def check(result, client, pixels_BHW, **params: object) -> None:
    """The numbers are those of /predict."""
    for b, pixels in enumerate(pixels_BHW):
        expected = predicted(client, pixels, **params)
        assert result.as_numpy("probabilities")[b].tolist() == expected["probabilities"]
        assert result.as_numpy("class_index")[b] == expected["class_index"]
        assert result.as_numpy("abstain")[b] == expected["abstain"]
        assert result.as_numpy("novelty")[b] == expected["novelty"]["score"]
        assert result.as_numpy("label")[b] in {expected["label"], expected["label"].encode()}
        if params.get("samples"):
            for name in ("variance", "standard_error", "mutual_information", "predictive_entropy", "expected_entropy"):
                assert result.as_numpy(name)[b].tolist() == expected["uncertainty"][name], name
        else:
            assert result.as_numpy("variance") is None


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("params", [{}, {"samples": 30, "seed": 7, "coverage": 0.99}])
def test_tritons_client_gets_the_numbers_of_predict(server, client, pixels_BHW, is_binary, params):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as official:
        assert official.is_server_live()
        assert official.is_server_ready()
        assert official.is_model_ready("mcd")
        assert official.is_model_ready("mcd", "1")
        assert not official.is_model_ready("other")
        assert official.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
        names = {tensor["name"] for tensor in official.get_model_metadata("mcd")["outputs"]}
        assert {"probabilities", "mutual_information", "sample_probabilities"} <= names
        assert official.get_model_config("mcd")["max_batch_size"] == 1000
        result = official.infer(
            "mcd", [input_of(pixels_BHW, "UINT8", is_binary=is_binary)], request_id="a-1", parameters=params or None
        )
        assert result.get_response()["id"] == "a-1"
        check(result, client, pixels_BHW, **params)
        files = np.array([png(pixels) for pixels in pixels_BHW], dtype=object)
        check(official.infer("mcd", [input_of(files, "BYTES", is_binary=True)], parameters=params or None), client,
              pixels_BHW, **params)  # fmt: skip


def test_tritons_client_asks_for_outputs_by_name(server, client, pixels_BHW):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as official:
        outputs = [
            triton.InferRequestedOutput("probabilities", class_count=3),
            triton.InferRequestedOutput("sample_probabilities", binary_data=True),
            triton.InferRequestedOutput("mutual_information", binary_data=False),
        ]
        inputs = [input_of((pixels_BHW / 255).astype(np.float32), "FP32", is_binary=True)]
        asked = {"samples": 20}
        compressed = {"request_compression_algorithm": "gzip"}
        result = official.infer("mcd", inputs, outputs=outputs, parameters=asked, **compressed)
        assert {tensor["name"] for tensor in result.get_response()["outputs"]} == {one.name() for one in outputs}
        assert result.as_numpy("sample_probabilities").shape == (20, 5, 10)
        for b, pixels in enumerate(pixels_BHW):
            expected = predicted(client, pixels, samples=20, return_samples=True)
            assert result.as_numpy("sample_probabilities")[:, b].tolist() == expected["sample_probabilities"]
            top = np.argsort(expected["probabilities"])[::-1][:3]
            labels = [text.decode() for text in result.as_numpy("probabilities")[b]]
            assert [int(text.split(":")[1]) for text in labels] == top.tolist()
            assert labels[0].endswith(expected["label"])
        with pytest.raises(triton.InferenceServerException, match="mutual_information is available with masks"):
            official.infer("mcd", inputs, outputs=outputs[2:])
        with pytest.raises(triton.InferenceServerException, match=r"samples must be 0, 2\.\.1000 or auto, got 1"):
            official.infer("mcd", inputs, parameters={"samples": 1})


def test_tritons_asynchronous_client_gets_the_same(server, client, pixels_BHW):
    async def infer():
        async with triton_aio.InferenceServerClient(server.url.removeprefix("http://")) as official:
            assert await official.is_model_ready("mcd")
            inputs = [input_of(pixels_BHW, "UINT8", is_binary=True)]
            return await official.infer("mcd", inputs, parameters={"samples": 30, "seed": 7})

    check(asyncio.run(infer()), client, pixels_BHW, samples=30, seed=7)


def test_a_bad_image_is_named_and_errors_are_told_in_both_ways(client, pixels_BHW):
    good = [png(pixels_BHW[0]), b"GIF89a"]
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


def test_answers_are_as_the_protocol_describes_them(client, pixels_BHW):
    body = request_of(tensor_of(pixels_BHW, "UINT8"), id="x", parameters={"samples": 20})
    answer = client.post(INFER, content=body).json()
    assert InferenceResponse.model_validate(answer, strict=True).id == "x"
    assert answer.keys() == {"model_name", "model_version", "id", "outputs"}
    for tensor in answer["outputs"]:
        assert tensor.keys() == {"name", "shape", "datatype", "data"}
        assert len(tensor["data"]) == np.prod(tensor["shape"])
        assert tensor["shape"][0] == 5
    assert "id" not in client.post(INFER, content=request_of(GOOD)).json()


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
def test_answers_are_as_the_protocols_own_description_says(client, pixels_BHW, described, params):
    body = request_of(tensor_of(pixels_BHW, "UINT8"), id="x", parameters=params)
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


def test_limits_hold_here_too(client):
    many = np.zeros((101, 28, 28), np.uint8)
    head = request_of(
        {"shape": many.shape, "datatype": "UINT8", "parameters": {"binary_data_size": many.size}},
        parameters={"samples": 1000},
    )
    response = client.post(INFER, content=head + many.tobytes(), headers={metadata.HEADER_LENGTH: str(len(head))})
    assert (response.status_code, response.json()["type"]) == (413, "urn:mcd:problem:too-much-work")
    patient = request_of(GOOD, parameters={"timeout": 10**400})
    assert client.post(INFER, content=patient).status_code == 200
    late = request_of(tensor_of(np.zeros((50, 28, 28), int), "UINT8"), parameters={"samples": 1000, "timeout": 1})
    response = client.post(INFER, content=late)
    assert (response.status_code, response.json()["type"]) == (504, "urn:mcd:problem:deadline-exceeded")


@pytest.mark.parametrize(("whole", "one", "is_raw"), [(True, False, False), (False, True, True), (True, None, True)])
def test_an_output_says_for_itself_whether_it_is_binary(client, whole, one, is_raw):
    asked = {
        "inputs": [{"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784}],
        "parameters": {"binary_data_output": whole},
        "outputs": [{"name": "confidence", "parameters": {} if one is None else {"binary_data": one}}],
    }
    response = client.post("/v2/models/mcd/infer", json=asked)
    assert ("inference-header-content-length" in response.headers) == is_raw


def test_what_serializers_and_codecs_add_is_passed_over(client):
    tensor = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784}
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
