"""What the README says is run, or held against the code that it speaks of."""

import json
import re
import subprocess
import sys
import tomllib
from itertools import chain, pairwise

import pytest
from server import ROOT

from model import load_artifact
from model.artifact import PRETRAINED
from model.calibration import COVERAGES, RISKS
from service.schemas.parameters import Parameters
from service.settings import PREFIX, Settings
from training.compare import interval

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
CURLS = [line.removeprefix("$ ") for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]


def rows(header: str) -> list[list[str]]:
    """The cells of the table that has this header in its first column."""
    table = re.search(rf"^\| {header} \|.*\n\|.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert table, header
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def run_shell(command: str, url: str) -> dict:
    there = command.replace("localhost:3000", url.removeprefix("http://"))
    completed = subprocess.run(["bash", "-c", there], cwd=ROOT, capture_output=True, check=True, timeout=30)
    return json.loads(completed.stdout)


def assert_alike(shown: object, found: object) -> None:
    """Equal but for the digits that the README leaves out."""
    if isinstance(shown, dict):
        assert shown.keys() == found.keys()
        for name, value in shown.items():
            assert_alike(value, found[name])
    elif isinstance(shown, float) or (isinstance(shown, list) and all(isinstance(one, float) for one in shown)):
        assert found == pytest.approx(shown, rel=0.02, abs=1e-6)
    else:
        assert found == shown


SHOWN = [
    (text.removeprefix("$ ").strip().replace("\n$ ", " && "), json.loads(answer))
    for (kind, text), (following, answer) in pairwise(BLOCKS)
    if (kind, following) == ("console", "json")
]


def test_answers_are_shown():
    assert len(SHOWN) == 4


@pytest.mark.parametrize(("command", "answer"), SHOWN)
def test_the_answers_shown_are_the_servers(server, command, answer):
    assert_alike(answer, run_shell(command, server.url))


def test_the_ways_to_send_an_image_are_one(server):
    answers = [run_shell(command, server.url) for command in CURLS if "seed" in command]
    assert len(answers) == 3
    assert all(answer == answers[0] for answer in answers)
    assert (answers[0]["label"], answers[0]["samples"], answers[0]["seed"]) == ("ankle boot", 100, 1)


@pytest.mark.parametrize("snippet", [text for kind, text in BLOCKS if kind == "python"])
def test_the_python_snippets_run(server, snippet):
    code = snippet.replace("http://localhost:3000", server.url)
    code = code.replace("localhost:3000", server.url.removeprefix("http://"))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_settings_are_all_there_with_their_defaults():
    shown = {name.strip("`"): default for names, _, default in rows("variable") for name in names.split(", ")}
    assert shown.pop("MCD_DATA_DIR") == ""
    assert shown == {PREFIX + name.upper(): str(value) for name, value in Settings()}


def test_the_parameters_are_all_there_with_their_defaults():
    shown = {name.strip("`"): default.strip("`") for name, _, default in rows("parameter")}
    assert shown == {name: str(value) for name, value in Parameters()}


def test_every_dependency_is_named_with_a_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    named = ", ".join(re.sub(r"\(.*?\)", "", packages) for packages, _ in rows("package"))
    assert {re.match(r"[\w-]+", line)[0] for line in listed} == {name.strip() for name in named.split(",")}
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {re.match(r"[\w-]+", line)[0] for line in listed} <= pinned


def test_the_figures_are_the_cards():
    metrics = load_artifact().card["metrics"]["test"]
    shown = {name: len(list(rows(name))) for name in ("mode", "coverage asked for", "risk accepted")}
    assert shown == {"mode": 3, "coverage asked for": len(COVERAGES), "risk accepted": len(RISKS)}
    for mode, *figures in rows("mode"):
        found = metrics[mode.partition(",")[0]]
        raw = [found[name] for name in ("accuracy", "nll", "ece")]
        calibrated = [found["calibrated"][name] for name in ("nll", "ece")]
        assert [f"{number:.4f}" for number in raw + calibrated] == figures
    promises = metrics["mc"]["calibrated"]
    for level, covered, size in rows("coverage asked for"):
        found = promises["prediction_sets"]["lac"][level]
        assert [f"{found[name]:.3f}" for name in ("covered", "size")] == [covered, size]
    for risk, answered, error in rows("risk accepted"):
        found = promises["max_risk"][risk]
        assert [f"{found[name]:.3f}" for name in ("answered", "error")] == [answered, error]


def test_the_other_figures_are_the_model_cards():
    figures = json.loads((ROOT / "docs" / "model-card" / "figures.json").read_text())
    assert [row[0] for row in rows("images that are no clothing")] == list(figures["ood"])
    for name, *shown in rows("images that are no clothing"):
        aurocs = [figures["ood"][name][score]["auroc"] for score in ("novelty", "mutual information, mc")]
        decided = [figures["decisions"][name][part] for part in ("novel", "answered")]
        assert [f"{number:.3f}" for number in aurocs + decided] == shown
    for name, *shown in rows("other model"):
        model, mode = name.split(", ")
        assert [f"{figures['beside'][model][mode][part]:.4f}" for part in ("accuracy", "nll", "ece")] == shown
    varied = {
        "blurred a little": figures["corruptions"]["blur"]["1"], "turned by 15°": figures["rotation"]["15"],
        "turned by 90°": figures["rotation"]["90"], "covered in part": figures["corruptions"]["occlusion"]["3"],
    }  # fmt: skip
    assert [row[0] for row in rows("test images")] == list(varied)
    for name, *shown in rows("test images"):
        found = varied[name]
        numbers = [found["mc"]["accuracy"], found["decision"]["answered"], found["decision"]["error"]]
        assert [f"{number:.3f}" for number in numbers] == shown


def test_the_intervals_over_seeds_are_those_of_the_cards():
    folders = [PRETRAINED, *sorted((ROOT / "training" / "ensemble").iterdir())]
    cards = [load_artifact(folder).card for folder in folders]
    assert [card["seed"] for card in cards] == [0, 1, 2, 3, 4]
    calibrated = [card["metrics"]["test"]["mc"]["calibrated"] for card in cards]
    for title, name in {"accuracy": "accuracy", "NLL": "nll", "ECE": "ece"}.items():
        mean, half = interval([one[name] for one in calibrated])
        assert f"{title} {mean:.4f} ± {half:.4f}" in README


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^    |`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
