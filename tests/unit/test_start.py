"""Starts that are refused, each in one line that says why; tests/e2e/test_refused_starts.py has real ones."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from application import service_settings

from model.artifact import CARD, PRETRAINED, WEIGHTS
from service.service import UncertaintyService


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def rewrite_card(folder: Path, change: Callable[[dict], object]) -> None:
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


DAMAGES = {
    "flipped byte": (flip_a_byte, r"weights\.safetensors: expected sha256 \w{64}, got \w{64}"),
    "missing key": (
        lambda folder: rewrite_card(folder, lambda card: card["weights"].pop("sha256")),
        r"card\.json: expected an entry weights\.sha256, got none",
    ),
    "wrong shape": (
        lambda folder: rewrite_card(folder, lambda card: card["architecture"].update(hidden=[256, 128])),
        r"weights\.safetensors: tensor hidden2\.bias: expected float32\[128\], got float32\[256\]",
    ),
    "no dropout": (
        lambda folder: rewrite_card(folder, lambda card: card["architecture"].update(dropout=[0, 0])),
        r"graph\.dropout: expected \[\] as in architecture, got \[0\.1, 0\.3\]",
    ),
}


def refusal(model: str) -> str:
    """Why a server with this model does not start."""
    with service_settings(MCD_MODEL=model), pytest.raises(SystemExit) as refused:
        UncertaintyService.inner.check_model()
    return str(refused.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_refused_in_one_line(tmp_path, damage):
    change, reason = DAMAGES[damage]
    folder = tmp_path / "artifact"
    shutil.copytree(PRETRAINED, folder)
    change(folder)
    (line,) = refusal(str(folder)).splitlines()
    assert line.startswith("mcd: the model can't be served: ")
    assert re.search(reason, line)


def test_a_missing_model_is_refused_in_one_line(tmp_path):
    for model, reason in {"bentoml:nothing": "in BentoML store", str(tmp_path / "nothing"): "card.json"}.items():
        (line,) = refusal(model).splitlines()
        assert line.startswith("mcd: the model can't be served: ")
        assert reason in line
