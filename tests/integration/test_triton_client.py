"""Triton's own clients of the Open Inference Protocol."""

import asyncio

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from files import png


@pytest.fixture(scope="module")
def address(served_server) -> str:
    return served_server.url.removeprefix("http://")


@pytest.fixture(scope="module")
def pixels_B(served) -> np.ndarray:
    return served.pixels_B[:5]


def predicted(client, pixels: np.ndarray, **params: object) -> dict:
    return client.post("/predict", content=png(pixels), params=params).json()


def input_of(values: np.ndarray, datatype: str, *, is_binary: bool) -> triton.InferInput:
    tensor = triton.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=is_binary)
    return tensor


def check(result, client, pixels_B, **params: object) -> None:
    """The numbers are those of /predict."""
    for b, pixels in enumerate(pixels_B):
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
def test_inference_gives_the_numbers_of_predict(address, served_client, pixels_B, is_binary, params):
    with triton.InferenceServerClient(address) as official:
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
            "mcd", [input_of(pixels_B, "UINT8", is_binary=is_binary)], request_id="a-1", parameters=params or None
        )
        assert result.get_response()["id"] == "a-1"
        check(result, served_client, pixels_B, **params)
        channels_first = pixels_B[:, None] if pixels_B.ndim == 3 else np.moveaxis(pixels_B, -1, 1).copy()
        tensor = input_of(channels_first, "UINT8", is_binary=is_binary)
        check(official.infer("mcd", [tensor], parameters=params or None), served_client, pixels_B, **params)
        files = np.array([png(pixels) for pixels in pixels_B], dtype=object)
        tensor = input_of(files, "BYTES", is_binary=True)
        check(official.infer("mcd", [tensor], parameters=params or None), served_client, pixels_B, **params)


def test_outputs_can_be_chosen_by_name(address, served_client, pixels_B):
    with triton.InferenceServerClient(address) as official:
        outputs = [
            triton.InferRequestedOutput("probabilities", class_count=3),
            triton.InferRequestedOutput("sample_probabilities", binary_data=True),
            triton.InferRequestedOutput("mutual_information", binary_data=False),
        ]
        inputs = [input_of((pixels_B / 255).astype(np.float32), "FP32", is_binary=True)]
        asked = {"samples": 20}
        compressed = {"request_compression_algorithm": "gzip"}
        result = official.infer("mcd", inputs, outputs=outputs, parameters=asked, **compressed)
        assert {tensor["name"] for tensor in result.get_response()["outputs"]} == {one.name() for one in outputs}
        assert result.as_numpy("sample_probabilities").shape[:2] == (20, 5)
        for b, pixels in enumerate(pixels_B):
            expected = predicted(served_client, pixels, samples=20, return_samples=True)
            assert result.as_numpy("sample_probabilities")[:, b].tolist() == expected["sample_probabilities"]
            top = np.argsort(expected["probabilities"])[::-1][:3]
            labels = [text.decode() for text in result.as_numpy("probabilities")[b]]
            assert [int(text.split(":")[1]) for text in labels] == top.tolist()
            assert labels[0].endswith(expected["label"])
        with pytest.raises(triton.InferenceServerException, match="is available with masks or moments only"):
            official.infer("mcd", inputs, outputs=outputs[2:])
        with pytest.raises(triton.InferenceServerException, match=r"samples must be 0, 2\.\.1000 or auto, got 1"):
            official.infer("mcd", inputs, parameters={"samples": 1})


def test_the_asynchronous_client_gives_the_same(address, served_client, pixels_B):
    async def infer():
        async with triton_aio.InferenceServerClient(address) as official:
            assert await official.is_model_ready("mcd")
            inputs = [input_of(pixels_B, "UINT8", is_binary=True)]
            return await official.infer("mcd", inputs, parameters={"samples": 30, "seed": 7})

    check(asyncio.run(infer()), served_client, pixels_B, samples=30, seed=7)
