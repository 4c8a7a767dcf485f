"""Servers that refuse to start; the reasons themselves are in tests/unit/test_start.py and test_settings.py."""

import shutil

import pytest
from server import refused_start

from model.artifact import PRETRAINED, WEIGHTS


@pytest.fixture
def damaged(tmp_path) -> str:
    folder = tmp_path / "artifact"
    shutil.copytree(PRETRAINED, folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"x")
    return str(folder)


def test_a_bad_model_is_refused_in_one_line(tmp_path, damaged):
    code, printed = refused_start(tmp_path / "home", MCD_MODEL=damaged)
    assert code != 0
    (line,) = printed.strip().splitlines()
    assert line.startswith("mcd: the model can't be served: ")


def test_a_missing_tag_is_refused_in_one_line(tmp_path):
    code, printed = refused_start(tmp_path / "home", MCD_MODEL="bentoml:nothing")
    assert code != 0
    (line,) = printed.strip().splitlines()
    assert line.startswith("mcd: the model can't be served: ")


def test_a_bad_setting_is_refused_in_one_line(tmp_path):
    code, printed = refused_start(tmp_path / "home", MCD_WORKERS="two", MCD_API_KEYS="secret-key")
    assert code != 0
    (line,) = printed.strip().splitlines()
    assert line.startswith("mcd: MCD_WORKERS: ")
    assert "secret-key" not in line
