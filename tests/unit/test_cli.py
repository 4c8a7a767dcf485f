"""The command `mcd`, all but its server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rgb
from PIL import Image
from typer.testing import CliRunner, Result

from cli.main import app
from cli.server import server_environment
from model import load_artifact
from model.artifact import PRETRAINED
from service.inference.limits import ImageLimits
from service.pipeline import Pipeline, Run
from service.schemas.parameters import Parameters

ROOT = Path(__file__).parent.parent.parent
SNEAKER = ROOT / "model" / "pretrained" / "examples" / "6.png"
BOOT = ROOT / "model" / "pretrained" / "examples" / "0.png"


def mcd(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="mcd")


@pytest.fixture(scope="module")
def answer():
    """What the service answers for the sneaker."""
    pipeline = Pipeline(load_artifact(), ImageLimits(25_000_000))
    upload = pipeline.accept(SNEAKER.read_bytes())
    return lambda **asked: pipeline.answer(upload, Parameters(**asked), Run()).model_dump(mode="json")


def test_help_lists_the_commands_and_loads_none():
    script = "import sys; from cli.main import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for command in ("serve", "predict", "bulk", "train", "evaluate"):
        assert f"│ {command} " in printed
    assert not {"torch", "bentoml", "numpy", "ray"} & set(printed.split())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("serve", "--port"),
        ("predict", "--samples"),
        ("bulk", "--resume"),
        ("train", "--recipe"),
        ("evaluate", "--report"),
    ],
)
def test_each_command_has_its_own_help(command, option):
    shown = mcd(command, "--help")
    assert shown.exit_code == 0
    assert f"Usage: mcd {command} [OPTIONS]" in shown.stdout
    assert option in shown.stdout


def test_an_unknown_option_of_a_command_is_a_usage_error():
    refused = mcd("train", "--recipes", "default")
    assert refused.exit_code == 2
    assert "No such option" in refused.stderr
    assert "mcd train --help" in refused.stderr


@pytest.mark.parametrize("asked", [{"samples": 0}, {"samples": 30, "seed": 4}, {"samples": "auto"}])
def test_predict_prints_what_the_service_answers(answer, asked):
    words = [word for name, value in asked.items() for word in (f"--{name}", value)]
    printed = mcd("predict", SNEAKER, "--json", *words)
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == {"image": str(SNEAKER)} | answer(**asked)


def test_predict_takes_the_model_of_the_settings_or_of_its_option(monkeypatch, rgb_folder):
    monkeypatch.setenv("MCD_MODEL", str(rgb_folder))
    shown = json.loads(mcd("predict", SNEAKER, "--json").stdout)
    assert shown["label"] in rgb.CLASSES
    assert json.loads(mcd("predict", SNEAKER, "--json", "--model", PRETRAINED).stdout)["label"] == "sneaker"


def test_bulk_takes_the_model_of_the_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("MCD_MODEL", str(tmp_path / "nothing"))
    refused = mcd("bulk", SNEAKER.parent, tmp_path / "out")
    assert refused.exit_code == 1
    assert "nothing/card.json" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_predict_prints_a_row_for_each_image(answer):
    expected = answer(samples=100)
    printed = mcd("predict", SNEAKER, BOOT)
    assert printed.exit_code == 0
    _, head, sneaker, boot = printed.stdout.splitlines()
    assert head.split() == ["image", "label", "confidence", "set", "abstain", "information", "novelty"]
    assert sneaker.split() == [
        str(SNEAKER),
        expected["label"],
        f"{expected['confidence']:.3f}",
        *", ".join(expected["prediction_set"]).split(),
        "no",
        f"{expected['uncertainty']['mutual_information']:.3f}",
        f"{expected['novelty']['score']:.2f}",
    ]
    assert boot.startswith(f" {BOOT}  ankle boot  ")


def test_predict_shows_why_to_abstain(tmp_path):
    Image.open(BOOT).rotate(40).save(tmp_path / "turned.png")
    turned = mcd("predict", tmp_path / "turned.png").stdout.splitlines()[-1]
    assert "  novelty  " in turned
    assert turned.rstrip().endswith(" (pose)")
    printed = mcd("predict", ROOT / "docs" / "images" / "page-light.png")
    assert "  novelty  " in printed.stdout.splitlines()[-1]


def test_predict_in_eval_mode_shows_no_mutual_information():
    printed = mcd("predict", SNEAKER, "--samples", "0")
    assert printed.stdout.splitlines()[-1].split()[-2] == "-"


def test_bad_images_are_reported_and_the_others_printed(tmp_path):
    text, missing = tmp_path / "notes.txt", tmp_path / "missing.png"
    text.write_text("no image")
    printed = mcd("predict", text, SNEAKER, missing, tmp_path, "--json")
    assert printed.exit_code == 1
    assert json.loads(printed.stdout)["image"] == str(SNEAKER)
    assert printed.stderr.splitlines() == [
        f"{text}: the image must be a PNG, JPEG or WEBP file",
        f"{missing}: No such file or directory",
        f"{tmp_path}: Is a directory",
    ]


def test_a_table_without_rows_is_not_printed(tmp_path):
    printed = mcd("predict", tmp_path / "missing.png")
    assert (printed.exit_code, printed.stdout) == (1, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "1"], "samples must be 0, 2..1000 or auto, got 1: one mask has no spread"),
        (["--seed", "x"], "seed must be a whole number, got x"),
        (["--model", "no-folder"], "no-folder/card.json: expected a readable file, got No such file or directory"),
    ],
)
def test_predict_refuses_wrong_options_in_one_line(words, message):
    refused = mcd("predict", SNEAKER, *words)
    assert (refused.exit_code, refused.stdout, refused.stderr) == (1, "", f"{message}\n")


def test_serving_gets_absolute_paths():
    given = {
        "MCD_MODEL": "runs/default/artifact",
        "MCD_API_KEYS_FILE": "/etc/mcd/keys",
        "MCD_RECENT_FOLDER": "",
        "MCD_WORKERS": "2",
    }
    here = os.getcwd()  # noqa: PTH109 - as text
    assert server_environment(given) == given | {
        "MCD_MODEL": f"{here}/runs/default/artifact",
        "BENTOML_DO_NOT_TRACK": "True",
    }


def test_serving_keeps_the_names_of_stored_models():
    given = {"MCD_MODEL": "bentoml:mcd:latest", "BENTOML_DO_NOT_TRACK": "False"}
    assert server_environment(given) == given
