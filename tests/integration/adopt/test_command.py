"""The command in this process: what it refuses in one line, what it goes on with, and interruptions."""

import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from model import load_artifact
from model.artifact import ArtifactError
from model.examples import MAX_EXAMPLES
from training.adopt.__main__ import app

CODE = """
import torch
from torch import nn


class Ending(nn.Module):
    def forward(self, images_B):
        raise SystemExit


def make(classes=3, dropout=0.5, weight=None, ends=False):
    if ends:
        return Ending()
    torch.manual_seed(0)
    head = nn.Linear(24, classes)
    if weight is not None:
        nn.init.constant_(head.weight, weight)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(dropout), head)
"""
COMMAND = ["tiny_networks:make", "--images", "../images", "--size", "8", "--channels", "1", "--out", "adopted"]


class Interruption:
    """Sends SIGINT to this process when it has touched a file of a name so often; an audit hook stays for good."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.times = 1
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple) -> None:
        if self.name is None or event not in {"open", "os.rename"}:
            return
        if Path(str(arguments[event == "os.rename"])).name != self.name:
            return
        self.times -= 1
        if self.times == 0:
            self.name, self.times = None, 1
            os.kill(os.getpid(), signal.SIGINT)


INTERRUPTION = Interruption()


@pytest.fixture(scope="module", autouse=True)
def two_numbers_of_masks() -> Iterator[None]:
    """Fewer than in operation, which is most of an adoption's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.adopt.adoption.SAMPLES", (10, 100))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Networks, and images of three classes."""
    made = tmp_path_factory.mktemp("command")
    (made / "tiny_networks.py").write_text(CODE)
    rng = np.random.default_rng(100)
    for index in range(130):
        path = made / "images" / str(index % 3) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (8, 8)) + 60 * (np.arange(8) % 3 == index % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return made


def run(folder: Path, name: str, monkeypatch, *words: str) -> Result:
    """Run the command in a folder of this name."""
    (folder / name).mkdir(exist_ok=True)
    monkeypatch.chdir(folder / name)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", ["mcd", "adopt", *COMMAND, *words])
    return CliRunner().invoke(app, [*COMMAND, *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--arguments", '{"classes": 4}'],
            "the network has 4 outputs, but there are 3 classes: name all of them with",
        ),
        (["--arguments", '{"ends": true}'], "the network calls sys.exit when it computes"),
        (["--arguments", '{"weight": NaN}'], "4.weight has values that are not finite"),
        (["--arguments", '{"dropout": 0}'], "--inject-dropout 0.1 inserts it before the last linear layer"),
        (["--inject-dropout", "0.2"], "is for networks without dropout, and this one has it at 3: leave it out"),
        (["--member", "../absent.pt"], "../absent.pt: expected a readable file, got No such file"),
        (["--size", "12"], "the network fails on an image of shape [1, 1, 12, 12]"),
        (["--labels", "labels.npy"], "--labels is for images in an .npy or IDX file"),
        (["--images", "../few"], "3 images are too few to calibrate and to test: give 20 or more"),
        (
            ["--images", "../broken"],
            "broken/0/11.png, ../broken/0/12.png and 20 more (the image must be a PNG, JPEG or WEBP file): remove",
        ),
        (["--images", "../absent"], "--images ../absent doesn't exist"),
        (["--out", "../tiny_networks.py/deeper"], "tiny_networks.py is a file: give a folder"),
        (["--resize", "fit", "--mean", "0.5"], "--mean and --std belong together"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder, monkeypatch, words, message):
    for name, count, content in (("few", 3, None), ("broken", 25, b"no image")):
        (folder / name / "0").mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / name / "0" / f"{index}.png"
            path.write_bytes(content or (folder / "images" / "0" / "0.png").read_bytes())
    done = run(folder, "refused", monkeypatch, *words)
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "refused" / "adopted" / "card.json").exists()


def test_several_networks_are_adopted_as_an_ensemble(folder, whole, monkeypatch):
    """With weights for the same factory, and with the artifact of another adoption."""
    monkeypatch.syspath_prepend(folder)
    make = importlib.import_module("tiny_networks").make
    inputs_B = np.random.default_rng(3).random((2, 1, 8, 8), np.float32)
    expected = []
    for seed in range(2):
        network = make()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
        torch.save(network.state_dict(), folder / f"{seed}.pt")
        expected.append(network.eval()(torch.from_numpy(inputs_B)).softmax(-1).detach().numpy())
    words = ["--weights", "../0.pt", "--member", "../1.pt", "--member", "../whole/adopted"]
    done = run(folder, "ensemble", monkeypatch, *words)
    assert done.exit_code == 0, done.output
    assert "ensemble of 3 networks; time for one image in times of one network: eval " in done.stdout
    artifact = load_artifact("adopted")
    expected.append(load_artifact("../whole/adopted").engine.predict(inputs_B))
    assert artifact.members == 3
    assert np.abs(artifact.engine.predict(inputs_B) - np.mean(expected, axis=0)).max() < 1e-6
    assert artifact.card["cost"].keys() == {"eval", "30", "100"}
    assert artifact.moments_unavailable == "moments are of one network, and this is an ensemble of 3"
    assert {one.estimator for one in artifact.calibrations} == {"eval", "masks"}
    assert "3, whose predictions are averaged" in (Path("adopted") / "model-card" / "index.html").read_text()
    again = CliRunner().invoke(app, ["adopted", "--images", "../images", "--out", "again"])
    assert again.exit_code == 0, again.output
    assert load_artifact("again").card["cost"] == artifact.card["cost"]
    joined = CliRunner().invoke(
        app, ["adopted", "--member", "../whole/adopted", "--images", "../images", "--out", "joined"]
    )
    assert joined.exit_code == 1
    assert "error: member 1 is an ensemble of 3 networks: give these one by one" in joined.stderr


def test_a_class_without_images_is_named_and_the_others_are_calibrated(folder, monkeypatch):
    (folder / "names.txt").write_text("0\n1\nnever seen\n2\n")
    words = ["--classes", "../names.txt", "--arguments", '{"classes": 4}', "--no-pictures"]
    earlier = folder / "absent" / "adopted" / "example.png"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"of an earlier adoption")
    done = run(folder, "absent", monkeypatch, *words)
    assert done.exit_code == 0, done.output
    assert "no guarantee for the classes never seen: there are no images of them" in done.stdout
    artifact = load_artifact("adopted")
    assert artifact.classes == ("0", "1", "never seen", "2")
    assert artifact.examples == ()
    assert not earlier.exists()
    assert {one.estimator for one in artifact.calibrations} == {"eval", "masks", "moments"}


def test_an_artifact_is_calibrated_again_with_its_own_input_specification(folder, whole, monkeypatch):
    command = ["../whole/adopted", "--images", "../images", "--out", "again"]
    monkeypatch.chdir(whole)
    done = CliRunner().invoke(app, [*command, "--calibration-fraction", "0.4"])
    assert done.exit_code == 0, done.output
    first, again = load_artifact("adopted"), load_artifact("again")
    assert (again.files, again.input, again.classes) == (first.files, first.input, first.classes)
    assert len(again.examples) == len(first.examples) == MAX_EXAMPLES
    assert again.card["data"]["split"] == {"calibration": 52, "test": 78, "fraction": 0.4}
    assert again.moments is not None
    for words, message in [
        (["--channels", "1"], "an artifact has its own input specification: leave out --channels, or give --size"),
        (["--inject-dropout", "0.1"], "--inject-dropout is for networks without dropout"),
        (["--weights", "w.pt"], "is an artifact, which has its weights: leave out --weights"),
        (["--out", "adopted"], "--out adopted is the folder of the artifact itself: give another"),
    ]:
        refused = CliRunner().invoke(app, [*command, *words])
        assert refused.exit_code == 1
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """Folder of an adoption that nobody interrupted."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        done = run(folder, "whole", monkeypatch)
    assert done.exit_code == 0, done.output
    return folder / "whole"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_poses_add_a_view_and_what_it_finds_to_the_card(folder, monkeypatch):
    done = run(folder, "posed", monkeypatch, "--poses", "--calibration-fraction", "0.8", "--no-pictures")
    assert done.exit_code == 0, done.output
    artifact = load_artifact("adopted")
    assert {*artifact.card["novelty"]["poses"]["ordinary"]} >= {"rotation, degrees", "scale"}
    found = artifact.card["metrics"]["ood"]
    assert found["test images turned by 90°"]["images"] == found["test images upside down, by a mirror"]["images"] == 26
    assert "test images turned by 90°" in " ".join(done.stdout.split())
    page = Path("adopted", "model-card", "index.html").read_text()
    assert "Ordinary variations" in page
    assert "turned by 90°" in page


@pytest.mark.parametrize(("name", "times"), [("98.png", 2), ("card.json", 1)], ids=["measuring", "saving"])
def test_an_interrupted_adoption_goes_on_to_the_same_artifact(folder, whole, monkeypatch, name, times):
    place = f"interrupted at {name}"
    INTERRUPTION.name, INTERRUPTION.times = name, times  # images are read once before, to be checked
    done = run(folder, place, monkeypatch)
    assert (done.exit_code, done.stderr) == (130, "interrupted: the same command goes on\n")
    kept = {path: path.stat().st_mtime_ns for path in Path("adopted", "progress").glob("*/*.npz")}
    assert kept
    with pytest.raises(ArtifactError):
        load_artifact("adopted")
    INTERRUPTION.name = next(iter(kept)).name  # and again, when a part is read that is there already
    assert run(folder, place, monkeypatch).exit_code == 130
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert run(folder, place, monkeypatch).exit_code == 0
    assert contents(Path("adopted")) == contents(whole / "adopted")


def test_inserted_dropout_is_printed_and_on_the_card(folder, monkeypatch):
    words = ["--arguments", '{"dropout": 0}', "--inject-dropout", "0.2", "--intended-use", "Sorts stripes."]
    done = run(folder, "inserted", monkeypatch, *words)
    assert done.exit_code == 0, done.output
    assert "dropout of p 0.2 inserted before 4" in done.stdout
    card = json.loads(Path("adopted", "card.json").read_text())
    assert card["intended_use"] == "Sorts stripes."
    tested, missing = card["guarantees"]["tested"], card["guarantees"]["missing"]
    assert [one["guarantee"] for one in tested][:2] == ["sets of coverage 0.8", "sets of coverage 0.9"]
    assert missing
    assert all(f"no guarantee for {line}" in " ".join(done.stdout.split()) for line in missing)
    page = Path("adopted", "model-card", "index.html").read_text()
    assert "Sorts stripes." in page
    assert "sets of coverage 0.9" in page
    assert card["injected_dropout"] == {"p": 0.2, "before": "4"}
    assert [site["p"] for site in card["graph"]["dropout"]] == [0.2]
