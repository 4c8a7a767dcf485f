"""Networks of torchvision, adopted, then served one after the other and scored in bulk, against torch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from architectures import CLASSES, NETWORKS, SIDE, randomize
from files import npy_request, png
from PIL import Image
from server import ROOT, serve
from torch import Tensor
from typer.testing import CliRunner

from model import Artifact, MonteCarloDropout, Uncertainty, find_calibration, load_artifact, summarize
from model.artifact import PRETRAINED
from service.bulk.inputs.discovery import open_source
from service.bulk.scoring import Scorer
from service.inference.limits import ImageLimits
from service.schemas.parameters import Parameters
from training.adopt import __main__ as adopt
from training.adopt.networks import load_network

MASKS = {"samples": 30, "seed": 3}
RAW = {**MASKS, "calibrated": False}
HEADERS = {"X-API-Key": "admin-key"}
CLOSE = {"rel": 1e-4, "abs": 2e-6}


@dataclass(frozen=True)
class Adopted:
    """An artifact, and what torch says of the images under the same masks and without."""

    folder: Path
    artifact: Artifact
    masked: Uncertainty
    plain_BC: Tensor


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Coarse and fine noise, five images of each class, in folders."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(8)
    for name in CLASSES:
        (folder / name).mkdir()
        for number in range(5):
            side = 2 ** (number + 1)
            noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
            noise.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pixels_B(images) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(images.glob("*/*.png"))[::6]])


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[httpx.Client, Path]]:
    """A server, and the folder of its model, which is replaced for each network."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(PRETRAINED, folder / "model")
    settings = {"MCD_MODEL": str(folder / "model"), "MCD_ADMIN_KEYS": HEADERS["X-API-Key"]}
    with serve(folder / "home", **settings) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client, folder / "model"


@pytest.fixture(scope="module", params=NETWORKS)
def adopted(request, tmp_path_factory, images, pixels_B) -> Adopted:
    """By the command, with less time for masks, so that fewer numbers of masks are calibrated."""
    folder, (factory, arguments) = tmp_path_factory.mktemp(request.param), NETWORKS[request.param]
    inputs_B = torch.from_numpy(pixels_B.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    torch.manual_seed(4)
    network = randomize(load_network(factory, json.dumps(arguments)), inputs_B)
    torch.save(network.state_dict(), folder / "weights.pt")
    command = [
        factory, "--arguments", json.dumps(arguments), "--weights", str(folder / "weights.pt"),
        "--images", str(images), "--size", str(SIDE), "--normalize", "minus1to1", "--out", str(folder / "artifact"),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.adopt.adoption._SECONDS", 5.0)
        done = CliRunner().invoke(adopt.app, command)
    assert done.exit_code == 0, done.output
    mc, artifact = MonteCarloDropout(network), load_artifact(folder / "artifact")
    return Adopted(folder / "artifact", artifact, summarize(mc.sample(inputs_B, **MASKS)), mc.predict(inputs_B))


@pytest.fixture(scope="module")
def client(served, adopted) -> httpx.Client:
    """A client of the server, which has loaded the network."""
    opened, place = served
    shutil.rmtree(place)
    shutil.copytree(adopted.folder, place)
    response = opened.post("/admin/reload", headers=HEADERS)
    assert response.json()["model"] == adopted.artifact.sha256, response.text
    return opened


def ok(response: httpx.Response) -> dict:
    assert response.status_code == 200, response.text
    return response.json()


def check(answer: dict, adopted: Adopted, index: int) -> None:
    """An answer with raw probabilities is what torch computes."""
    assert answer["probabilities"] == pytest.approx(adopted.masked.mean[index].tolist(), **CLOSE)
    for name, value in answer["uncertainty"].items():
        assert value == pytest.approx(getattr(adopted.masked, name)[index].tolist(), **CLOSE), name


def test_images_are_answered_as_by_torch(client, adopted, pixels_B):
    calibration = find_calibration(adopted.artifact.calibrations, "masks", MASKS["samples"])
    for index, pixels in enumerate(pixels_B):
        check(ok(client.post("/predict", content=png(pixels), params=RAW)), adopted, index)
        plain = ok(client.post("/predict", content=png(pixels), params={"calibrated": False}))
        assert plain["probabilities"] == pytest.approx(adopted.plain_BC[index].tolist(), **CLOSE)
        calibrated = ok(client.post("/predict", content=png(pixels), params=MASKS))
        (expected,) = calibration.probabilities(adopted.masked.mean[index : index + 1].numpy())
        assert calibrated["probabilities"] == pytest.approx(expected.tolist(), **CLOSE)
        assert calibrated["calibration"] == {"estimator": "masks", "samples": calibration.samples}
        assert calibrated["label"] == CLASSES[int(expected.argmax())]
        assert set(calibrated["prediction_set"]) <= set(CLASSES)
    assert adopted.masked.mean.std(dim=0).max() > 1e-3  # images differ


@pytest.mark.parametrize("form", ["files", "npy", "lists"])
def test_batches_are_answered_as_by_torch(client, adopted, pixels_B, form):
    request = {
        "files": {"files": [("images", png(pixels)) for pixels in pixels_B], "params": RAW},
        "npy": {"params": RAW, **npy_request(pixels_B)},
        "lists": {"json": {"images": pixels_B.tolist(), **RAW}},
    }[form]
    for index, answer in enumerate(ok(client.post("/predict_batch", **request))["results"]):
        check(answer, adopted, index)


def test_tensors_are_answered_as_by_torch(client, adopted, pixels_B):
    for layout in (pixels_B, pixels_B.transpose(0, 3, 1, 2)):
        tensor = {"name": "image", "shape": layout.shape, "datatype": "UINT8", "data": layout.ravel().tolist()}
        answer = ok(client.post("/v2/models/mcd/infer", json={"inputs": [tensor], "parameters": RAW}))
        outputs = {one["name"]: np.reshape(one["data"], one["shape"]) for one in answer["outputs"]}
        for name, expected in (("probabilities", "mean"), ("variance",) * 2, ("mutual_information",) * 2):
            assert outputs[name] == pytest.approx(getattr(adopted.masked, expected).numpy(), **CLOSE), name


def test_images_are_ranked_as_by_torch(client, adopted, pixels_B):
    answer = ok(client.post("/rank", params=MASKS, **npy_request(pixels_B)))
    scores_B = adopted.masked.mutual_information.numpy()
    assert answer["scores"] == pytest.approx(sorted(scores_B, reverse=True), **CLOSE)
    assert scores_B[answer["indices"]] == pytest.approx(answer["scores"], **CLOSE)


def test_bulk_scoring_gives_the_answers_of_the_service(client, adopted, pixels_B, tmp_path):
    np.save(tmp_path / "images.npy", pixels_B)
    source = open_source(
        str(tmp_path / "images.npy"), image="image", identifier=None, max_bytes=10**6, spec=adopted.artifact.input
    )
    scorer = Scorer(adopted.artifact, Parameters(**MASKS), encoded=source.encoded, limits=ImageLimits(10**6))
    (table,) = (table for shard in source.shards for table in shard.read(pa.array([], pa.string()), include=False))
    answers = ok(client.post("/predict_batch", params=MASKS, **npy_request(pixels_B)))["results"]
    for row, answer in zip(scorer(table).to_pylist(), answers, strict=True):
        assert (row["error"], row["model"]) == (None, adopted.artifact.sha256)
        for name in ("label", "probabilities", "prediction_set", "abstain", "abstain_reason"):
            assert row[name] == answer[name], name
        for name in ("variance", "standard_error", "mutual_information"):
            assert row[name] == answer["uncertainty"][name], name


@pytest.mark.parametrize("adopted", ["vit"], indirect=True)
def test_the_command_scores_image_files(client, adopted, images, tmp_path):
    options = ["--model", adopted.folder, "--samples", MASKS["samples"], "--seed", MASKS["seed"]]
    command = [sys.executable, "-m", "service.bulk", images, tmp_path / "out", *options]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    paths = sorted(images.glob("*/*.png"))
    assert sorted(rows) == [str(path.relative_to(images)) for path in paths]
    for path in paths[::9]:
        answer = ok(client.post("/predict", content=path.read_bytes(), params=MASKS))
        assert rows[str(path.relative_to(images))]["probabilities"] == answer["probabilities"]
