"""The documentation is executed, or compared with the code that it describes."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict
from itertools import chain, pairwise
from pathlib import Path

import pytest
from server import ROOT

from model import load_artifact
from model.artifact import PRETRAINED
from model.calibration import COVERAGES, RISKS
from service.schemas.parameters import Parameters
from service.schemas.problems import STATUSES
from service.settings import PREFIX, Settings
from training.compare import interval
from training.recipes import RECIPES

DOCS = ROOT / "docs"
README, API, RESULTS = ROOT / "README.md", DOCS / "api.md", DOCS / "results.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*/*.md"))]
MOST_LINES_OF_README = 150
SET_METHODS = ("lac", "mondrian")  # that are compared by class


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The kind and text of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def snippets(page: Path, kind: str) -> dict[str, str]:
    """The fenced blocks of one kind, by page and number."""
    return {f"{name_of(page)}-{number}": text for number, (found, text) in enumerate(blocks(page)) if found == kind}


def examples() -> list:
    """Each request that is followed by its answer."""
    found = []
    for page in PAGES:
        for number, ((kind, text), (following, answer)) in enumerate(pairwise(blocks(page))):
            if (kind, following) == ("console", "json"):
                command = text.removeprefix("$ ").strip().replace("\n$ ", " && ")
                found.append(pytest.param(command, json.loads(answer), id=f"{name_of(page)}-{number}"))
    return found


def tables(page: Path) -> list[list[list[str]]]:
    """The cells of each table, its header first."""
    found = re.findall(r"((?:^\|.*\n)+)", page.read_text(), re.MULTILINE)
    cells = [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]
    return [[header, *body] for header, _, *body in cells]


def rows(page: Path, header: str) -> list[list[str]]:
    """The cells of the table that has this header in its first column."""
    [body] = [body for titles, *body in tables(page) if titles[0] == header]
    return body


def run_shell(command: str, url: str) -> dict:
    on_server = command.replace("localhost:3000", url.removeprefix("http://"))
    completed = subprocess.run(["bash", "-c", on_server], cwd=ROOT, capture_output=True, check=True, timeout=30)
    return json.loads(completed.stdout)


def assert_alike(shown: object, found: object) -> None:
    """Equal except for the digits that the documentation leaves out."""
    if isinstance(shown, dict):
        assert shown.keys() == found.keys()
        for name, value in shown.items():
            assert_alike(value, found[name])
    elif isinstance(shown, float) or (isinstance(shown, list) and all(isinstance(one, float) for one in shown)):
        assert found == pytest.approx(shown, rel=0.02, abs=1e-6)
    else:
        assert found == shown


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= MOST_LINES_OF_README


def test_examples_are_found():
    assert len(examples()) == 4
    assert sum(page == README for page in PAGES for kind, _ in blocks(page) if kind == "json") == 1


@pytest.mark.parametrize(("command", "answer"), examples())
def test_shown_answers_are_the_servers(server, command, answer):
    assert_alike(answer, run_shell(command, server.url))


def test_ways_to_send_an_image_are_equivalent(server):
    commands = [
        line.removeprefix("$ ") for kind, text in blocks(API) if kind == "console" for line in text.splitlines()
    ]
    answers = [run_shell(command, server.url) for command in commands if "seed" in command]
    assert len(answers) == 3
    assert all(answer == answers[0] for answer in answers)
    assert (answers[0]["label"], answers[0]["samples"], answers[0]["seed"]) == ("ankle boot", 100, 1)


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "python")], ids=name_of)
def test_python_snippets_run(server, page):
    """Each on its own names; one process for a page, as most of the time is importing torch."""
    host = server.url.removeprefix("http://")
    lines = [
        f"exec(compile({snippet.replace('localhost:3000', host)!r}, {name!r}, 'exec'), {{'__name__': '__main__'}})"
        for name, snippet in snippets(page, "python").items()
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True, timeout=120)


def test_all_settings_are_listed_with_their_defaults():
    listed = rows(DOCS / "settings.md", "variable")
    shown = {name.strip("`"): default for names, _, default in listed for name in names.split(", ")}
    assert shown.pop("MCD_DATA_DIR") == ""
    assert shown == {PREFIX + name.upper(): str(value) for name, value in Settings()}


def test_all_parameters_are_listed_with_their_defaults():
    shown = {name.strip("`"): default.strip("`") for name, _, default in rows(API, "parameter")}
    assert shown == {name: str(value) for name, value in Parameters()}


def test_all_error_statuses_are_listed():
    shown = {int(status) for statuses, _ in rows(API, "status") for status in statuses.split(", ")}
    assert shown == set(STATUSES.values())


def test_every_dependency_is_listed_with_a_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", line)[0] for line in declared}
    listed = ", ".join(re.sub(r"\(.*?\)", "", packages) for packages, _ in rows(DOCS / "dependencies.md", "package"))
    assert {name.strip() for name in listed.split(",")} == names
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert names <= pinned


def rows_by_network(header: str) -> dict[str, list[list[str]]]:
    """The rows of a table of results, by network: "cnn: " precedes the first cell of the convolutional network's."""
    found: dict[str, list[list[str]]] = {"": [], "cnn": []}
    for first, *others in rows(RESULTS, header):
        network, _, name = first.rpartition(": ")
        found[network].append([name, *others])
    return found


def evaluated(network: str) -> dict:
    """All figures that `python -m training.evaluate` found."""
    return json.loads((DOCS / (f"results/{network}.json" if network else "model-card/figures.json")).read_text())


@pytest.mark.parametrize("network", ["", "cnn"])
def test_figures_are_those_of_the_test_images(network):
    metrics = evaluated(network) if network else load_artifact().card["metrics"]["test"]
    modes, sets, risks = (rows_by_network(header)[network] for header in ("mode", "requested coverage", "`max_risk`"))
    assert [len(found) for found in (modes, sets, risks)] == [3, len(COVERAGES), len(RISKS)]
    for mode, *figures in modes:
        found = metrics[mode.partition(",")[0]]
        raw = [found[name] for name in ("accuracy", "nll", "ece")]
        calibrated = [found["calibrated"][name] for name in ("nll", "ece")]
        assert [f"{number:.4f}" for number in raw + calibrated] == figures
    calibrated = metrics["mc"]["calibrated"]
    for level, covered, size in sets:
        found = calibrated["prediction_sets"]["lac"][level]
        assert [f"{found[name]:.3f}" for name in ("covered", "size")] == [covered, size]
    if not network:
        for method, *cells in rows(RESULTS, "method"):
            levels = calibrated["prediction_sets"][method.strip("`")].values()
            assert cells == [f"{found['covered']:.3f}, {found['size']:.3f}" for found in levels]
    for risk, answered, error in risks:
        found = calibrated["max_risk"][risk]
        assert [f"{found[name]:.3f}" for name in ("answered", "error")] == [answered, error]


def test_coverage_by_class_is_that_of_the_card():
    by_class = load_artifact().card["metrics"]["classes"]
    sets = {name: [row["prediction_sets"][method]["0.9"] for method in SET_METHODS] for name, row in by_class.items()}
    shown = {name: cells for name, *cells in rows(RESULTS, "class")}
    assert shown == {
        name: [f"{one[part]:.3f}" for one in found for part in ("covered", "size")] for name, found in sets.items()
    }
    least = [min(found[place]["covered"] for found in sets.values()) for place in range(2)]
    (cell,) = [value for title, value in rows(README, "quality") if title.startswith("least coverage of a class")]
    assert cell == ", ".join(f"{value:.3f}" for value in least)


@pytest.mark.parametrize("network", ["", "cnn"])
def test_figures_are_those_of_shifted_and_other_images(network):
    figures = evaluated(network)
    others = rows_by_network("out-of-distribution images")[network]
    assert [row[0] for row in others] == list(figures["ood"])
    for name, *shown in others:
        aurocs = [figures["ood"][name][score]["auroc"] for score in ("novelty", "mutual information, mc")]
        decided = [figures["decisions"][name][part] for part in ("novel", "answered")]
        assert [f"{number:.3f}" for number in aurocs + decided] == shown
    shifted = {
        "slightly blurred": figures["corruptions"]["blur"]["1"], "rotated by 15°": figures["rotation"]["15"],
        "rotated by 90°": figures["rotation"]["90"], "partly covered": figures["corruptions"]["occlusion"]["3"],
    }  # fmt: skip
    shown_shifts = rows_by_network("test images")[network]
    assert [row[0] for row in shown_shifts] == list(shifted)
    for name, *shown in shown_shifts:
        found = shifted[name]
        numbers = [found["mc"]["accuracy"], found["decision"]["answered"], found["decision"]["error"]]
        assert [f"{number:.3f}" for number in numbers] == shown


def test_figures_of_other_models_are_those_of_the_model_card():
    figures = evaluated("")
    for name, *shown in rows(RESULTS, "other model"):
        model, mode = name.split(", ")
        assert [f"{figures['beside'][model][mode][part]:.4f}" for part in ("accuracy", "nll", "ece")] == shown


@pytest.fixture(scope="module")
def cards() -> list[dict]:
    """Of the included network and the other seeds of its recipe."""
    folders = [PRETRAINED, *sorted((ROOT / "training" / "ensemble").iterdir())]
    return [load_artifact(folder).card for folder in folders]


def test_the_networks_are_trained_by_the_default_recipe(cards):
    recipe = {name: value for name, value in asdict(RECIPES["default"]).items() if name != "architecture"}
    assert [card["recipe"] for card in cards] == [{"name": "default"} | recipe] * len(cards)
    assert [card["seed"] for card in cards] == [0, 1, 2, 3, 4]


def test_figures_over_seeds_are_those_of_the_cards(cards):
    calibrated = [card["metrics"]["test"]["mc"]["calibrated"] for card in cards]
    text = " ".join(RESULTS.read_text().split())
    at_08 = [one["prediction_sets"]["mondrian"]["0.8"]["covered"] for one in calibrated]
    assert f"`mondrian` at 0.8, with {at_08[0]:.3f}" in text
    assert f"that is {min(at_08[1:]):.3f} to {max(at_08[1:]):.3f}" in text
    classes = [
        row["prediction_sets"]["mondrian"]["0.9"]["covered"]
        for card in cards[1:]
        for row in card["metrics"]["classes"].values()
    ]
    assert f"each class has {min(classes):.3f} to {max(classes):.3f}" in text
    for title, name in {"accuracy": "accuracy", "NLL": "nll", "ECE": "ece"}.items():
        mean, half = interval([one[name] for one in calibrated])
        assert f"{title} {mean:.4f} ± {half:.4f}" in text


def measured(page: str, table: int = 0) -> dict[str, list[str]]:
    """A table that a benchmark wrote: the cells of each row by its first one."""
    return {label: cells for label, *cells in tables(DOCS / "performance" / page)[table][1:]}


def milliseconds(table: dict[str, list[str]]) -> tuple[float, float]:
    """Time of 100 masks with our method, and with the fastest other library."""
    took = {label: cells[2].partition(" ")[0] for label, cells in table.items()}
    others = [float(took[label]) for label in took if label.startswith(("torch-uncertainty", "baal"))]
    return float(took["ours: stratified"]), min(others)


def measured_ratios() -> list[float]:
    """The figures of docs/performance.md in their order, from the tables of the benchmarks."""
    one, many, error = measured("speed.md"), measured("speed.md", 2), measured("error.md")
    latency, throughput = measured("latency.md"), measured("throughput.md")
    (ours, fastest), (ours_of_many, fastest_of_many) = milliseconds(one), milliseconds(many)
    in_forwards = {label: float(re.search(r"\((.*)\)", cells[2])[1]) for label, cells in one.items()}
    loop = float(one["loop of train-mode passes"][2].partition(" ")[0])
    overload = re.search(
        r"99th percentile of the answers is ([\d.]+) times", (DOCS / "performance/overload.md").read_text()
    )
    return [
        in_forwards["ours: stratified"],
        fastest / ours,
        loop / ours,
        fastest_of_many / ours_of_many,
        float(error["stratified 30"][0]) / float(error["independent 100"][0]),
        float(error["moments"][0]) / float(error["independent 1000"][0]),
        float(error["moments"][2]) / float(error["independent 200"][2]),
        in_forwards["ours: moments"],
        float(throughput["bare uvicorn and Starlette"][1]),
        float(throughput["BentoML's idiom"][1]),
        float(overload[1]),
        *(float(latency[request][1]) for request in ("samples=100", "samples=1000", "method=moments")),
    ]


def test_performance_figures_are_those_of_the_benchmarks():
    shown = [value for _, value in rows(DOCS / "performance.md", "measurement")]
    digits = [len(value.replace(".", "").lstrip("0")) for value in shown]
    assert shown == [f"{ratio:.{count}g}" for ratio, count in zip(measured_ratios(), digits, strict=True)]


def test_headline_figures_are_those_of_the_docs():
    of_masks, at_5_percent = rows_by_network("mode")[""][1], rows_by_network("`max_risk`")[""][-1]
    shown = [value for title, value in rows(README, "quality") if not title.startswith("least coverage of a class")]
    assert shown == [of_masks[1], of_masks[5], *at_5_percent[1:]]
    performance = [value for _, value in rows(DOCS / "performance.md", "measurement")]
    assert [value for _, value in rows(README, "speed")] == [*performance[:3], performance[8]]


def test_figures_of_the_ensemble_are_those_of_its_evaluation():
    figures, included = evaluated("ensemble"), evaluated("")
    shown = rows(RESULTS, "masks of five networks")
    assert [count for count, *_ in shown] == ["0, eval", "10", "30", "100"]
    for count, *cells in shown:
        found, other = (one["masks"][count] if count.isdecimal() else one["eval"] for one in (figures, included))
        raw = [found[name] for name in ("accuracy", "nll", "ece")]
        calibrated = [one["calibrated"][name] for one in (found, other) for name in ("nll", "ece")]
        assert [f"{number:.4f}" for number in raw + calibrated] == cells


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_existing_targets_and_modules(page):
    makefile, text = (ROOT / "Makefile").read_text(), page.read_text()
    for target in set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in set(re.findall(r"python -m ((?:service|training|benchmarks)[\w.]*)", text)):
        assert importlib.util.find_spec(module), module


def prose(page: Path) -> str:
    """The text of a page without code blocks, inline code and formulas."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`|\$[^$]*\$", "", text)


def anchors(page: Path) -> set[str]:
    """The ids that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = [heading.lower() for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
    return {re.sub(r"[^\w -]", "", heading).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_relative_links_resolve(page):
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_index_links_every_page():
    index = (DOCS / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
