"""The service with a network of other images: RGB, another size, another number of classes."""

import base64
import io
import shutil
import threading

import httpx
import numpy as np
import pytest
import rgb
import torch
from application import client_of
from files import encoded, npy_request
from PIL import Image

from model import MonteCarloDropout, load_artifact, summarize
from model.artifact import PRETRAINED
from service.http.static_files import POLICY
from service.schemas.answers import _listed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return rgb.save(tmp_path_factory.mktemp("rgb") / "artifact")


@pytest.fixture(scope="module")
def client(folder):
    with client_of(MCD_MODEL=str(folder)) as opened:
        yield opened


@pytest.fixture(scope="module")
def pixels_B() -> np.ndarray:
    return np.random.default_rng(51).integers(0, 256, (5, 20, 24, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels))


def post(client: httpx.Client, path: str, **request) -> dict:
    response = client.post(path, **request)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_answer_is_what_torch_computes_under_the_same_masks(client, pixels_B):
    inputs_B = torch.from_numpy(rgb.SPEC.normalize(pixels_B))
    mc = MonteCarloDropout(rgb.network())
    expected, plain = summarize(mc.sample(inputs_B, samples=30, seed=5)), mc.predict(inputs_B)
    for b, pixels in enumerate(pixels_B):
        answer = post(client, "/predict", content=png(pixels), params={"samples": 30, "seed": 5})
        assert answer["probabilities"] == pytest.approx(expected.mean[b].tolist(), abs=1e-5)
        for name, value in answer["uncertainty"].items():
            assert value == pytest.approx(getattr(expected, name)[b].tolist(), abs=1e-5), name
        assert answer["label"] == rgb.CLASSES[answer["class_index"]]
        assert (answer["calibrated"], answer["prediction_set"]) == (False, None)
        eval_mode = post(client, "/predict", content=png(pixels))
        assert eval_mode["probabilities"] == pytest.approx(plain[b].tolist(), abs=1e-5)


def test_each_way_to_send_an_image_gives_the_same(client, pixels_B):
    params = {"samples": 20, "seed": 1}
    alone = [post(client, "/predict", content=png(pixels), params=params)["probabilities"] for pixels in pixels_B]
    file = io.BytesIO()
    np.save(file, pixels_B)
    npy = {"content": file.getvalue(), "headers": {"content-type": "application/x-npy"}}
    several = [
        {"files": [("images", png(pixels)) for pixels in pixels_B], "params": params},
        {"json": {"images": pixels_B.tolist(), **params}},
        {"json": {"images": [pixels.ravel().tolist() for pixels in pixels_B], **params}},
        {"json": {"images": [base64.b64encode(png(pixels)).decode() for pixels in pixels_B], **params}},
        {"params": params, **npy},
    ]
    for request in several:
        results = post(client, "/predict_batch", **request)["results"]
        assert [one["probabilities"] for one in results] == alone


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "flat", "FP32"])
def test_the_open_inference_protocol_takes_both_layouts(client, pixels_B, layout):
    params = {"samples": 20, "seed": 1}
    alone = [post(client, "/predict", content=png(pixels), params=params)["probabilities"] for pixels in pixels_B]
    values = {
        "NHWC": pixels_B, "NCHW": pixels_B.transpose(0, 3, 1, 2), "flat": pixels_B.reshape(5, -1),
        "FP32": pixels_B.transpose(0, 3, 1, 2) / 255,
    }[layout]  # fmt: skip
    tensor = {
        "name": "image", "shape": list(values.shape), "datatype": "FP32" if layout == "FP32" else "UINT8",
        "data": values.ravel().tolist(),
    }  # fmt: skip
    found = post(client, "/v2/models/mcd/infer", json={"inputs": [tensor], "parameters": params})
    outputs = {one["name"]: one for one in found["outputs"]}
    assert outputs["probabilities"]["shape"] == [5, 7]
    assert np.array_equal(np.reshape(outputs["probabilities"]["data"], (5, 7)), alone)
    metadata = client.get("/v2/models/mcd").json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 20, 24, 3]}]


def test_photographs_of_other_sizes_and_modes_are_answered(client):
    image = Image.effect_noise((200, 130), 60)
    for file in (
        encoded(image), encoded(image.convert("RGB"), "JPEG"), encoded(image.convert("CMYK"), "JPEG"),
        encoded(image.convert("RGBA"), "WEBP"), encoded(image.convert("P")),
    ):  # fmt: skip
        answer = post(client, "/predict", content=file, params={"samples": 10, "return_pixels": True})
        assert np.shape(answer["preprocessing"]["pixels"]) == (20, 24, 3)
        assert "cropped" in answer["preprocessing"]["steps"]


def test_lists_may_have_the_most_probable_classes_only(client, pixels_B):
    params = {"samples": 20, "return_samples": True}
    whole = post(client, "/predict", content=png(pixels_B[0]), params=params)
    assert "classes" not in whole
    assert post(client, "/predict", content=png(pixels_B[0]), params=params | {"top_k": 7}) == whole
    short = post(client, "/predict", content=png(pixels_B[0]), params=params | {"top_k": 3})
    order = np.argsort(-np.array(whole["probabilities"]), kind="stable")[:3]
    assert short["classes"] == [rgb.CLASSES[index] for index in order]
    assert short["classes"][0] == short["label"]
    assert short["probabilities"] == [whole["probabilities"][index] for index in order]
    for name in ("variance", "standard_error"):
        assert short["uncertainty"][name] == [whole["uncertainty"][name][index] for index in order]
    assert short["sample_probabilities"] == np.array(whole["sample_probabilities"])[:, order].tolist()
    for name in ("class_index", "confidence", "prediction_set", "preprocessing"):
        assert short[name] == whole[name]
    assert client.post("/predict", content=png(pixels_B[0]), params={"top_k": 0}).status_code == 422


def test_many_classes_are_not_all_listed():
    probabilities = np.random.default_rng(52).dirichlet(np.ones(1000)).tolist()
    assert _listed(probabilities[:20], None) is None
    assert _listed(probabilities[:21], None) == np.argsort(-np.array(probabilities[:21]))[:10].tolist()
    assert _listed(probabilities, 1000) is None
    assert len(_listed(probabilities, 999)) == 999


def test_the_novelty_score_is_that_of_the_library(client, folder, pixels_B):
    artifact = load_artifact(folder)
    images = [*pixels_B, np.zeros((20, 24, 3), np.uint8), np.full((20, 24, 3), 255, np.uint8)]
    probs_BC, features_BF = artifact.engine.predict_with_features(rgb.SPEC.normalize(np.stack(images)))
    expected_B, threshold = artifact.novelty.score(features_BF, probs_BC), artifact.novelty.thresholds[0.01]
    params = {"samples": 20}
    alone = [post(client, "/predict", content=png(pixels), params=params) for pixels in images]
    for answer, score in zip(alone, expected_B, strict=True):
        assert answer["novelty"] == {"score": score, "threshold": threshold, "flagged": bool(score > threshold)}
        assert answer["abstain_reason"] == ("novelty" if score > threshold else None)
    assert {answer["novelty"]["flagged"] for answer in alone} == {True, False}
    files = [("images", png(pixels)) for pixels in images]
    assert post(client, "/predict_batch", files=files, params=params)["results"] == alone


def test_as_many_arrays_as_images_are_allowed_fit_into_json(folder, pixels_B):
    with client_of(MCD_MODEL=str(folder), MCD_MAX_IMAGES="5") as client:
        assert len(post(client, "/predict_batch", json={"images": pixels_B.tolist()})["results"]) == 5
        many = client.post("/predict_batch", json={"images": pixels_B.reshape(5, -1).tolist() * 2})
        assert many.status_code == 413


def test_images_are_ranked(client, pixels_B):
    ranked = post(client, "/rank", files=[("images", png(pixels)) for pixels in pixels_B], params={"samples": 20})
    assert sorted(ranked["indices"]) == list(range(5))
    assert ranked["scores"] == sorted(ranked["scores"], reverse=True)


@pytest.mark.parametrize("path", ["/predict", "/predict_batch", "/rank"])
def test_moments_are_refused_where_the_network_has_none(client, pixels_B, path):
    response = client.post(path, files={"image": png(pixels_B[0])}, params={"method": "moments"})
    assert response.status_code == 422, response.text
    reason = "3: moments pass through linear layers, ReLU and dropout of units, not conv2d"
    assert response.json()["detail"] == f"method must be masks with this network: {reason}"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((28, 28), int).tolist(), "an image array must have the shape 20 x 24 x 3, or 1440 values row by row"),
        (np.zeros((20, 24), int).tolist(), "an image array must have the shape 20 x 24 x 3"),
        ([0] * 1439, "an image array must have the shape 20 x 24 x 3"),
        (np.full((20, 24, 3), 256).tolist(), "must be numbers in 0..255"),
    ],
)
def test_arrays_of_other_shapes_are_refused(client, image, message):
    response = client.post("/predict", json={"image": image})
    assert response.status_code == 422
    assert message in response.json()["detail"]


def test_tensors_and_npy_of_other_shapes_are_refused(client):
    file = io.BytesIO()
    np.save(file, np.zeros((2, 28, 28), np.uint8))
    response = client.post("/predict_batch", content=file.getvalue(), headers={"content-type": "application/x-npy"})
    assert response.status_code == 422
    assert "uint8 images of shape (B, 20, 24, 3) in C order" in response.json()["detail"]
    tensor = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784}
    response = client.post("/v2/models/mcd/infer", json={"inputs": [tensor]})
    assert response.status_code == 422
    assert "[B, 20, 24, 3], [B, 3, 20, 24] or [B, 1440]" in response.json()["detail"]


def test_the_description_and_its_example_are_the_networks(client):
    described = client.get("/docs.json").json()
    body = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    answer = post(client, "/predict", json=body["example"])
    expected = described["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert answer["probabilities"] == expected["probabilities"]
    assert len(answer["probabilities"]) == 7
    inference = described["paths"]["/v2/models/mcd/infer"]["post"]["requestBody"]["content"]["application/json"]
    post(client, "/v2/models/mcd/infer", json=inference["example"])


def test_metrics_count_the_classes(client, pixels_B):
    post(client, "/predict", content=png(pixels_B[0]))
    assert 'predicted_class="g"' in client.get("/metrics").text


def test_the_card_has_the_input_specification(client, folder):
    assert client.get("/card.json").json()["input"] == rgb.SPEC.to_json()
    assert load_artifact(folder).input == rgb.SPEC


def test_the_card_lists_the_examples_and_the_service_sends_them(client, folder):
    listed = client.get("/card.json").json()["examples"]
    assert [one["name"] for one in listed] == ["g", "c", "e"]
    for one in listed:
        response = client.get(f"/ui/{one['file']}")
        assert response.content == (folder / one["file"]).read_bytes()
        assert response.headers["content-type"] == "image/png"
        assert response.headers["content-security-policy"] == POLICY.decode()
        assert (response.headers["cache-control"], response.headers["x-content-type-options"]) == (
            "no-cache",
            "nosniff",
        )
        tag = response.headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = client.get(f"/ui/{one['file']}", headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(f"/ui/{one['file']}", headers={"If-None-Match": '"other"'}).status_code == 200
        head = client.head(f"/ui/{one['file']}")
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(response.content)))
    assert len({client.get(f"/ui/{one['file']}").headers["etag"] for one in listed}) == 3
    for name in (
        "",
        "*",
        "3.png",
        "0.png/",
        "0.PNG",
        "../card.json",
        "%2e%2e/card.json",
        "/etc/passwd",
        "%2e%2e/%2e%2e/card.json",
    ):
        assert client.get(f"/ui/examples/{name}").status_code == 404, name
    assert client.post("/ui/examples/0.png").status_code == 405


def test_the_card_says_why_there_are_no_moments(client):
    assert client.get("/card.json").json()["chain"]["unavailable"].startswith("3: moments pass through linear layers")


def _ok(response: httpx.Response) -> dict:
    assert response.status_code == 200, response.text
    return response.json()


def test_networks_of_other_shapes_replace_each_other_while_requests_go_on(tmp_path, folder):
    """Every answer is wholly of one model: its classes, its number of probabilities, its warnings and its pixels."""
    embedded = load_artifact()
    forms = {embedded.classes: [28, 28], rgb.CLASSES: [20, 24, 3]}
    picture = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)))
    arrays = [npy_request(np.zeros((9, *shape), np.uint8)) for shape in forms.values()]
    served, ended = tmp_path / "served", threading.Event()
    shutil.copytree(PRETRAINED, served)
    seen: list[tuple[str, int]] = []
    wrong: list[object] = []

    def check(answer: dict) -> None:
        classes = embedded.classes if answer["label"] in embedded.classes else rgb.CLASSES
        shape = list(np.shape(answer["preprocessing"]["pixels"]))
        seen.append((answer["label"], len(answer["probabilities"])))
        if len(answer["probabilities"]) != len(classes) or shape != forms[classes]:
            wrong.append(answer)

    def ask(client: httpx.Client) -> None:
        params = {"samples": 20, "return_pixels": True}
        while not ended.is_set():
            check(_ok(client.post("/predict", content=picture, params=params)))
            for one in _ok(client.post("/predict_batch", files=[("images", picture)] * 5, params=params))["results"]:
                check(one)
            statuses = {client.post("/predict_batch", **array).status_code for array in arrays}
            if not statuses <= {200, 422}:
                wrong.append(statuses)

    with client_of(MCD_MODEL=str(served), MCD_ADMIN_KEYS="admin-key", MCD_LOG_LEVEL="error") as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for source in (folder, PRETRAINED, folder, PRETRAINED):
                shutil.rmtree(served)
                shutil.copytree(source, served)
                model = _ok(client.post("/admin/reload", headers={"X-API-Key": "admin-key"}))["model"]
                artifact = load_artifact(source)
                assert model == artifact.sha256
                assert _ok(client.get("/card.json"))["classes"] == list(artifact.classes)
                sent = [client.get(f"/ui/examples/{place}.png") for place in range(len(artifact.examples) + 1)]
                assert [one.content for one in sent[:-1]] == [example.content for example in artifact.examples]
                assert sent[-1].status_code == 404
                shape = _ok(client.get("/v2/models/mcd"))["inputs"][0]["shape"]
                assert shape == [-1, *artifact.input.pixel_shape]
                assert _ok(client.post("/predict", content=picture))["label"] in artifact.classes
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert not wrong
    assert {count for _, count in seen} == {10, 7}
