"""A built Bento, and a model of BentoML's store."""

import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import rgb
from server import ROOT, bentoml_command, environment, serve

from model import load_artifact
from model.artifact import PRETRAINED

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()


def test_a_built_bento_serves_the_same_bytes_without_training_code(tmp_path, client):
    home = tmp_path / "home"
    home.mkdir()
    built = subprocess.run(
        bentoml_command("build", "--output", "tag", "."),
        cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    tag = built.stdout.strip().removeprefix("__tag__:")
    (source,) = (home / "bentos").glob("*/*/src")
    assert {path.name for path in source.iterdir() if path.is_dir()} == {"model", "service"}
    requirements = (source.parent / "env" / "python" / "requirements.txt").read_text()
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements
    assert not (source / "model" / "network").exists()
    with serve(home, tag) as bento:
        for params in ({}, {"samples": 100, "seed": 4}):
            there = httpx.post(f"{bento.url}/predict", files={"image": BOOT}, params=params)
            here = client.post("/predict", files={"image": BOOT}, params=params)
            assert (there.status_code, there.content) == (200, here.content)
        for path in ("/ui", "/ui/main.js", "/ui/examples/0.png"):
            assert httpx.get(bento.url + path).content == client.get(path).content != b""


def test_models_of_the_bentoml_store_are_served_and_replaced_by_others_of_another_shape(tmp_path, rgb_folder):
    home = tmp_path / "home"

    def store(artifact: Path) -> None:
        program = (
            "import bentoml, shutil, sys\n"
            "with bentoml.models.create('other') as stored:\n"
            "    shutil.copytree(sys.argv[1], stored.path, dirs_exist_ok=True)"
        )
        subprocess.run([sys.executable, "-c", program, str(artifact)], check=True, env=environment(home))

    def answer(url: str) -> dict:
        return httpx.post(f"{url}/predict", content=BOOT, params={"return_pixels": True}).json()

    store(PRETRAINED)
    with serve(home, MCD_MODEL="bentoml:other:latest", MCD_ADMIN_KEYS="admin-key") as running:
        assert answer(running.url)["label"] == "ankle boot"
        store(rgb_folder)
        response = httpx.post(f"{running.url}/admin/reload", headers={"X-API-Key": "admin-key"})
        assert response.json()["model"] == load_artifact(rgb_folder).sha256
        replaced = answer(running.url)
        assert replaced["label"] in rgb.CLASSES
        assert np.shape(replaced["preprocessing"]["pixels"]) == rgb.SPEC.pixel_shape
