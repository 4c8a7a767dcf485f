"""Prediction sets that follow feedback."""

import shutil
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from application import client_of
from exposition import key, scrape
from files import npy_request

from model.artifact import PRETRAINED

ADMIN = {"X-API-Key": "admin-key"}
SET = {"mode": "mc", "set_method": "lac", "coverage": "0.9"}
PARAMS = {"samples": 30}


@pytest.fixture
def client(served) -> Iterator[httpx.Client]:
    with client_of(MCD_ADAPTIVE="true", MCD_LOG_LEVEL="error", **served.settings) as opened:
        yield opened


def predict(client: httpx.Client, pixels_B: np.ndarray, **params: object) -> list[dict]:
    response = client.post("/predict_batch", params=PARAMS | params, **npy_request(pixels_B))
    assert response.status_code == 200, response.text
    return response.json()["results"]


def tell_least(client: httpx.Client, answers: list[dict]) -> None:
    """Say that the true class of each image is its least probable one."""
    for answer in answers:
        least = int(np.argmin(answer["probabilities"]))
        body = {"image_hash": answer["preprocessing"]["image_hash"], "class_index": least}
        response = client.post("/feedback", json=body)
        assert (response.status_code, response.json()["predictions"] > 0) == (200, True), response.text


def sizes(answers: list[dict]) -> list[int]:
    return [len(answer["prediction_set"]) for answer in answers]


def test_misses_reported_by_feedback_widen_later_sets(client, served):
    first, later = served.pixels_B[:20], served.pixels_B[20:]
    before = predict(client, later)
    assert [answer["adaptive"] for answer in before] == [{"images": 0, "offset": 0}] * len(later)
    tell_least(client, predict(client, first))
    after = predict(client, later)
    assert np.all(np.array(sizes(after)) >= sizes(before))
    assert sum(sizes(after)) > sum(sizes(before))
    offset = scrape(client)[key("mcd_coverage_threshold_offset", **SET)]
    assert [answer["adaptive"] for answer in after] == [{"images": 20, "offset": offset}] * len(later)
    assert offset > 1
    assert predict(client, later) == after  # the state is the same


def test_each_mode_method_and_coverage_follows_its_own_feedback(client, served):
    tell_least(client, predict(client, served.pixels_B[:10]))
    one = served.pixels_B[:1]
    assert predict(client, one, samples=0)[0]["adaptive"] == {"images": 0, "offset": 0}
    offsets = {
        (method, coverage): predict(client, one, set_method=method, coverage=coverage)[0]["adaptive"]["offset"]
        for method in ("lac", "aps") for coverage in (0.8, 0.9)
    }  # fmt: skip
    now = scrape(client)
    for (method, coverage), offset in offsets.items():
        labels = SET | {"set_method": method, "coverage": str(coverage)}
        assert offset == now[key("mcd_coverage_threshold_offset", **labels)] != 0


def test_the_same_feedback_twice_counts_once(client, served):
    answers = predict(client, served.pixels_B[:3])
    for repeated in (answers, answers, predict(client, served.pixels_B[:3])):
        tell_least(client, repeated)
        assert scrape(client)[key("mcd_coverage_feedback_images", mode="mc")] == 3
    assert predict(client, served.pixels_B[:1])[0]["adaptive"]["images"] == 3


def test_without_the_setting_sets_stay_but_are_watched(served):
    with client_of(MCD_LOG_LEVEL="error", **served.settings) as client:
        before = predict(client, served.pixels_B)
        tell_least(client, before)
        assert predict(client, served.pixels_B) == before
        assert "adaptive" not in before[0]
        now = scrape(client)
        assert now[key("mcd_coverage_ratio", sets="static", **SET)] == 0
        assert now[key("mcd_coverage_ratio", sets="adaptive", **SET)] >= 0
        assert now[key("mcd_coverage_evidence_ratio", mode="mc")] > 100
        assert now[key("mcd_coverage_evidence_ratio", mode="eval")] == 0


def test_the_open_inference_protocol_has_the_same_sets(client, served):
    tell_least(client, predict(client, served.pixels_B[:20]))
    pixels_B = served.pixels_B[20:23]
    tensor = {"name": "image", "shape": pixels_B.shape, "datatype": "UINT8", "data": pixels_B.ravel().tolist()}
    asked = {"inputs": [tensor], "parameters": PARAMS, "outputs": [{"name": "prediction_set"}]}
    (output,) = client.post("/v2/models/mcd/infer", json=asked).json()["outputs"]
    in_set_BC = np.reshape(output["data"], (len(pixels_B), -1)).astype(bool)
    assert in_set_BC.sum(axis=1).tolist() == sizes(predict(client, pixels_B))


def test_a_restart_keeps_the_state_and_damage_begins_it_anew(served, tmp_path):
    variables = {"MCD_ADAPTIVE": "true", "MCD_RECENT_FOLDER": str(tmp_path), "MCD_LOG_LEVEL": "error"}
    with client_of(**variables, **served.settings) as client:
        tell_least(client, predict(client, served.pixels_B[:10]))
        before = predict(client, served.pixels_B)
    with client_of(**variables, **served.settings) as client:
        assert predict(client, served.pixels_B) == before
        (tmp_path / "coverage.json").write_bytes(b"\x00 damaged")
        after = predict(client, served.pixels_B)
        assert after[0]["adaptive"] == {"images": 0, "offset": 0}
        tell_least(client, after[10:12])
        assert predict(client, served.pixels_B)[0]["adaptive"]["images"] == 2


def test_a_reload_to_another_model_begins_anew(tmp_path, embedded, rgb_folder):
    served_folder = tmp_path / "served"
    shutil.copytree(PRETRAINED, served_folder)
    variables = {"MCD_ADAPTIVE": "true", "MCD_ADMIN_KEYS": "admin-key", "MCD_LOG_LEVEL": "error"}
    with client_of(MCD_MODEL=str(served_folder), MCD_RECENT_FOLDER=str(tmp_path / "recent"), **variables) as client:
        tell_least(client, predict(client, embedded.pixels_B[:10]))
        assert client.post("/admin/reload", headers=ADMIN).status_code == 200
        assert predict(client, embedded.pixels_B[:1])[0]["adaptive"]["images"] == 10  # the same model
        for folder in (rgb_folder, PRETRAINED):
            shutil.rmtree(served_folder)
            shutil.copytree(folder, served_folder)
            assert client.post("/admin/reload", headers=ADMIN).status_code == 200
            assert scrape(client)[key("mcd_coverage_feedback_images", mode="mc")] == 0
        assert predict(client, embedded.pixels_B[:1])[0]["adaptive"] == {"images": 0, "offset": 0}
