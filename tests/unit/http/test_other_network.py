"""What only a network of RGB images has, and networks of other shapes that replace each other."""

import io
import shutil
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import rgb
from application import client_of
from exposition import key, scrape
from files import encoded, npy_request, png
from PIL import Image

from model import load_artifact
from model.artifact import PRETRAINED
from service.http.static_files import POLICY
from service.monitoring.drift import STATISTICS
from service.schemas.answers import _listed


@pytest.fixture(scope="module")
def client(other) -> Iterator[httpx.Client]:
    with client_of(**other.settings) as opened:
        yield opened


def post(client: httpx.Client, path: str, **request) -> dict:
    response = client.post(path, **request)
    assert response.status_code == 200, response.text
    return response.json()


def test_photographs_of_other_sizes_and_modes_are_answered(client):
    image = Image.effect_noise((200, 130), 60)
    for file in (
        encoded(image), encoded(image.convert("RGB"), "JPEG"), encoded(image.convert("CMYK"), "JPEG"),
        encoded(image.convert("RGBA"), "WEBP"), encoded(image.convert("P")),
    ):  # fmt: skip
        answer = post(client, "/predict", content=file, params={"samples": 10, "return_pixels": True})
        assert np.shape(answer["preprocessing"]["pixels"]) == (20, 24, 3)
        assert "cropped" in answer["preprocessing"]["steps"]


def test_many_classes_are_not_all_listed():
    probabilities = np.random.default_rng(52).dirichlet(np.ones(1000)).tolist()
    assert _listed(probabilities[:20], None) is None
    assert _listed(probabilities[:21], None) == np.argsort(-np.array(probabilities[:21]))[:10].tolist()
    assert _listed(probabilities, 1000) is None
    assert len(_listed(probabilities, 999)) == 999


@pytest.mark.parametrize("path", ["/predict", "/predict_batch", "/rank"])
def test_moments_are_refused_where_the_network_has_none(client, other, path):
    response = client.post(path, files={"image": png(other.pixels_B[0])}, params={"method": "moments"})
    assert response.status_code == 422, response.text
    reason = (
        "moments need linear layers, ReLU and dropout of units from the first dropout to the logits, "
        "and this network also has conv2d (layer 3)"
    )
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


def test_the_card_has_the_input_specification(client, rgb_folder):
    card = client.get("/card.json").json()
    assert card["input"] == card["input_specification"] == rgb.SPEC.to_json()
    assert load_artifact(rgb_folder).input == rgb.SPEC


def test_the_card_lists_the_examples_and_the_service_sends_them(client, rgb_folder):
    listed = client.get("/card.json").json()["examples"]
    assert [one["name"] for one in listed] == ["g", "c", "e"]
    for one in listed:
        response = client.get(f"/ui/{one['file']}")
        assert response.content == (rgb_folder / one["file"]).read_bytes()
        versioned = client.get(f"/ui/{one['file']}", params={"sha256": one["sha256"]})  # as the page requests it
        assert (versioned.status_code, versioned.content) == (200, response.content)
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
    assert client.get("/card.json").json()["chain"]["unavailable"].endswith("also has conv2d (layer 3)")


def _ok(response: httpx.Response) -> dict:
    assert response.status_code == 200, response.text
    return response.json()


def test_networks_of_other_shapes_replace_each_other_while_requests_go_on(tmp_path, rgb_folder):
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
            for source in (rgb_folder, PRETRAINED, rgb_folder, PRETRAINED):
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


def test_feedback_is_not_counted_for_a_network_of_other_classes(tmp_path, rgb_folder):
    """An index, or a name, would mean another class."""
    shutil.copytree(PRETRAINED, tmp_path / "served")
    with client_of(MCD_MODEL=str(tmp_path / "served"), MCD_ADMIN_KEYS="admin-key") as client:
        sent = {"content": encoded(Image.new("L", (28, 28))), "headers": {"X-Request-ID": "before"}}
        index = _ok(client.post("/predict", **sent))["class_index"]
        shutil.rmtree(tmp_path / "served")
        shutil.copytree(rgb_folder, tmp_path / "served")
        _ok(client.post("/admin/reload", headers={"X-API-Key": "admin-key"}))
        told = {"request_id": "before", "class_index": min(index, 6)}
        refused = client.post("/feedback", json=told)
        assert (refused.status_code, refused.json()["type"]) == (404, "urn:mcd:problem:unknown-prediction")
        index = _ok(client.post("/predict", **sent))["class_index"]
        assert _ok(client.post("/feedback", json=told | {"class_index": index})) == {"predictions": 1, "right": 1}


def test_drift_is_measured_against_the_networks_own_calibration(other):
    """Images of noise, as those of the calibration; then flat ones."""
    flat_B = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 20, 24, 3))
    found = []
    with client_of(MCD_DRIFT_IMAGES="100", **other.settings) as client:
        for images_B in (rgb.noise(54, 100), flat_B.copy()):
            _ok(client.post("/predict_batch", params={"samples": 30}, **npy_request(images_B)))
            now = scrape(client)
            assert now[key("mcd_drift_window_images", mode="mc")] == 100
            found.append([now[key("mcd_drift_score", mode="mc", statistic=statistic)] for statistic in STATISTICS])
    assert max(found[0]) < 0.2
    assert max(found[1]) > 0.5
