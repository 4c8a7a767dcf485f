import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import training.evaluate
import training.recalibrate
import training.train
from model import MLPConfig, load_artifact
from model.artifact import CARD, FAILURES, NOVELTY, POINTS, PRETRAINED, WEIGHTS, add_to_card
from model.examples import FOLDER, file_name
from model.graph import MAIN
from model.input_spec import FASHION_MNIST
from model.novelty import FeatureNovelty
from training.cnn import CNNConfig
from training.data import CLASSES, FILES, FashionMNIST, Images
from training.fit import Fit
from training.recipes import RECIPES, Recipe

ROOT = Path(__file__).parents[2]
SECONDS = 600  # until a program that hangs is a failure


@dataclass(frozen=True)
class Finished:
    """What a program that ran as a user would run it, into a pipe, has left."""

    out: Path
    code: int
    stdout: str
    stderr: str


@contextmanager
def started(*options: object, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m training.train`; nothing of it is left afterwards."""
    terminal = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS"}
    # A shell's background job ignores SIGINT and would hand that down.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.train", *map(str, options)],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in terminal} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait(process: subprocess.Popen[str], out: Path) -> Finished:
    stdout, stderr = process.communicate(timeout=SECONDS)
    return Finished(out, process.returncode, stdout, stderr)


def signal_after_first_epoch(process: subprocess.Popen[str], out: Path, number: signal.Signals) -> Finished:
    deadline = time.monotonic() + SECONDS
    while not (out / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    return wait(process, out)


def chapter(fashion: FashionMNIST, out: Path) -> list[object]:
    return [
        "--recipe",
        "chapter",
        "--epochs",
        3,
        "--seed",
        7,
        "--device",
        "cpu",
        "--data",
        fashion.source,
        "--out",
        out,
    ]


@dataclass(frozen=True)
class Runs:
    """Two runs of three epochs with the same seed.

    Attributes:
        whole: ran without a break, and published.
        store: the BentoML store that `whole` was published into.
        killed: was killed with -9 after its first epoch.
        resumed: went on from `killed`, in the same folder.
        old_files: what a reader that had opened files of `killed` before `resumed` began read after that had ended,
            with what they held.
    """

    whole: Finished
    store: Path
    killed: Finished
    resumed: Finished
    old_files: dict[str, tuple[bytes, bytes]]


@pytest.fixture(scope="module")
def runs(fashion: FashionMNIST, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    store, whole_out, out = folder / "store", folder / "whole", folder / "killed"
    publishing = {"BENTOML_HOME": str(store), "BENTOML_DO_NOT_TRACK": "True"}
    with started(*chapter(fashion, whole_out), "--publish", **publishing) as whole_process:
        with started(*chapter(fashion, out)) as process:
            killed = signal_after_first_epoch(process, out, signal.SIGKILL)
        names = ("checkpoint.pt", "log.jsonl")
        before = {name: (out / name).read_bytes() for name in names}
        with (out / names[0]).open("rb") as checkpoint, (out / names[1]).open("rb") as log:
            with started(*chapter(fashion, out), "--resume") as process:
                resumed = wait(process, out)
            after = {names[0]: checkpoint.read(), names[1]: log.read()}
        whole = wait(whole_process, whole_out)
    old_files = {name: (after[name], before[name]) for name in names}
    return Runs(whole=whole, store=store, killed=killed, resumed=resumed, old_files=old_files)


@pytest.fixture(scope="module")
def interrupted(fashion: FashionMNIST, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that was interrupted with Ctrl-C after its first epoch."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    with started(*chapter(fashion, out)) as process:
        return signal_after_first_epoch(process, out, signal.SIGINT)


@pytest.fixture
def threads_kept() -> Iterator[None]:
    """What --threads sets ends with the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(fashion: FashionMNIST, monkeypatch: pytest.MonkeyPatch, threads_kept: None) -> None:
    """In this process, few images and small networks stand in for the data set and the recipes' networks."""
    index_B = torch.arange(300)
    few = FashionMNIST(train=fashion.train[index_B], test=fashion.test[index_B[:50]], source=fashion.source)
    recipe = replace(
        RECIPES["default"], architecture=MLPConfig(hidden=(8, 8), dropout=(0.2, 0.5)), epochs=2, calibration=60
    )
    monkeypatch.setattr(training.train, "load_fashion_mnist", lambda _folder: few)
    monkeypatch.setitem(training.train.RECIPES, "default", recipe)
    architecture = CNNConfig(channels=(3, 4, 5), hidden=8)
    convolutional = replace(RECIPES["cnn"], architecture=architecture, epochs=2, calibration=120)
    monkeypatch.setitem(training.train.RECIPES, "cnn", convolutional)


def invoke(*options: object) -> Result:
    return CliRunner().invoke(training.train.app, [str(option) for option in options])


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def weights_sha256(out: Path) -> str:
    return hashlib.sha256((out / "artifact" / "weights.safetensors").read_bytes()).hexdigest()


def epoch_lines(stdout: str) -> list[str]:
    return [line for line in stdout.splitlines() if line.startswith("epoch ")]


def test_a_run_ends_well_and_writes_no_errors(runs: Runs) -> None:
    assert (runs.whole.code, runs.whole.stderr) == (0, "")


def test_run_prints_one_line_per_epoch_with_logged_values(runs: Runs) -> None:
    log = rows(runs.whole.out)
    assert [row["epoch"] for row in log] == [1, 2, 3]
    for line, row in zip(epoch_lines(runs.whole.stdout), log, strict=True):
        assert line == (
            f"epoch   {row['epoch']}/3  train loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.4f}  |  "
            f"test loss {row['held_out_loss']:.4f}  accuracy {row['held_out_accuracy']:.4f}"
        )


def test_a_run_learns(runs: Runs) -> None:
    log = rows(runs.whole.out)
    assert log[0]["train_loss"] > log[1]["train_loss"] > log[2]["train_loss"]
    assert log[2]["held_out_accuracy"] > 0.75


def test_run_prints_its_data_and_output_paths(runs: Runs) -> None:
    out = runs.whole.out
    assert "60,000 training and 10,000 test images" in runs.whole.stdout
    assert "seed 7, cpu, 1 thread(s)" in runs.whole.stdout
    assert f"artifact {out / 'artifact'}, learning curves {out / 'curves.png'}, log {out / 'log.jsonl'}" in (
        runs.whole.stdout
    )
    assert f"MCD_MODEL={out / 'artifact'} make serve" in runs.whole.stdout


def test_the_artifact_answers_as_measured_in_the_last_epoch(runs: Runs, fashion: FashionMNIST) -> None:
    network = load_artifact(runs.whole.out / "artifact").network
    right_B = network(fashion.test.inputs_B).argmax(dim=1) == fashion.test.labels_B
    last = rows(runs.whole.out)[-1]
    assert right_B.double().mean().item() == pytest.approx(last["held_out_accuracy"], abs=1e-4)


def test_the_card_names_recipe_seed_and_command(runs: Runs) -> None:
    card = load_artifact(runs.whole.out / "artifact").card
    fields = asdict(RECIPES["chapter"]) | {"name": "chapter", "epochs": 3}
    assert card["recipe"] == {name: value for name, value in fields.items() if name != "architecture"}
    assert card["architecture"] == {"image": [1, 28, 28], "hidden": [256, 256], "dropout": [0.2, 0.5], "classes": 10}
    assert card["seed"] == 7
    assert card["command"] == "python -m training.train --recipe chapter --seed 7 --epochs 3 --threads 1"
    assert (card["device"], card["threads"]) == ("cpu", 1)
    assert card["versions"]["torch"] == torch.__version__
    assert card["versions"]["numpy"] == np.__version__


def test_the_card_names_the_data_that_was_read(runs: Runs, fashion: FashionMNIST) -> None:
    card = load_artifact(runs.whole.out / "artifact").card
    assert card["classes"] == list(CLASSES)
    tensors = (fashion.train.images_B, fashion.train.labels_B, fashion.test.images_B, fashion.test.labels_B)
    assert card["data"]["sha256"] == {
        file.name: hashlib.sha256(tensor.numpy().astype(np.uint8).tobytes()).hexdigest()
        for file, tensor in zip(FILES, tensors, strict=True)
    }
    split = card["data"]["split"]
    assert split == {"train": 60_000, "validation": 0, "calibration": 0, "test": 10_000}


def test_card_metrics_equal_log_and_test_measurements(runs: Runs) -> None:
    card = load_artifact(runs.whole.out / "artifact").card
    last = rows(runs.whole.out)[-1]
    assert card["metrics"]["last_epoch"] == last
    test = card["metrics"]["test"]
    assert (test["mc"]["samples"], test["mc"]["seed"]) == (100, 0)
    # The chapter follows the test set, so that the last epoch's figures are the eval mode's.
    assert test["eval"]["accuracy"] == pytest.approx(last["held_out_accuracy"], abs=1e-4)
    assert test["eval"]["nll"] == pytest.approx(last["held_out_loss"], rel=1e-4)
    assert test["mc"]["entropy"] > test["eval"]["entropy"]
    for row in test.values():
        assert f"{row['accuracy']:.4f}" in runs.whole.stdout


def test_the_learning_curves_are_a_picture_with_lines(runs: Runs) -> None:
    with Image.open(runs.whole.out / "curves.png") as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= colours  # matplotlib's C0, losses, and C1, accuracies


def test_resume_after_kill_gives_the_uninterrupted_weights(runs: Runs) -> None:
    assert runs.killed.code == -signal.SIGKILL
    assert runs.resumed.code == 0, runs.resumed.stderr
    assert re.search("going on after epoch [12] of 3", runs.resumed.stdout)
    assert weights_sha256(runs.resumed.out) == weights_sha256(runs.whole.out)


def test_resume_after_kill_gives_the_uninterrupted_log(runs: Runs) -> None:
    assert rows(runs.resumed.out) == rows(runs.whole.out)


def test_a_resumed_run_leaves_the_card_of_an_uninterrupted_one(runs: Runs) -> None:
    assert load_artifact(runs.resumed.out / "artifact").card == load_artifact(runs.whole.out / "artifact").card


def test_a_resumed_run_repeats_no_epoch(runs: Runs) -> None:
    printed = epoch_lines(runs.resumed.stdout)
    assert 1 <= len(printed) <= 2
    assert printed == epoch_lines(runs.whole.stdout)[-len(printed) :]


def test_checkpoint_and_log_are_replaced_whole(runs: Runs) -> None:
    # Who writes into the file itself changes what a reader of the old one sees, and a crash can leave half of it.
    for after, before in runs.old_files.values():
        assert after == before


def test_nothing_else_is_left_in_the_folder(runs: Runs) -> None:
    files = {"checkpoint.pt", "log.jsonl", "curves.png"} | {
        f"artifact/{name}" for name in (MAIN, POINTS, WEIGHTS, CARD, FAILURES, *map(file_name, range(10)))
    }
    assert {path.as_posix() for path in contents(runs.whole.out)} == files


def test_publish_puts_the_artifact_into_the_bentoml_store(runs: Runs) -> None:
    tag = re.search(r"MCD_MODEL=bentoml:mcd:(\w+) make serve", runs.whole.stdout)
    assert tag, runs.whole.stdout
    stored = load_artifact(runs.store / "models" / "mcd" / tag[1])
    assert stored.card == load_artifact(runs.whole.out / "artifact").card


def test_ctrl_c_exits_with_130_and_explains_resuming(interrupted: Finished) -> None:
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.stdout + interrupted.stderr
    assert f"interrupted; the finished epochs are in {interrupted.out}: go on with --resume" in (
        interrupted.stdout + interrupted.stderr
    )


def test_after_ctrl_c_the_finished_epochs_are_on_disk(interrupted: Finished) -> None:
    state = torch.load(interrupted.out / "checkpoint.pt", weights_only=True)
    log = rows(interrupted.out)
    assert 1 <= len(log) <= 2
    assert state["history"] == log
    assert len(epoch_lines(interrupted.stdout)) <= len(log)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([], "has a run already: go on with --resume, start again with --overwrite, or set --out"),
        (["--resume", "--seed", 8], "can't be resumed: seed: expected 8, got a checkpoint of 7"),
        (["--resume", "--epochs", 4], "can't be resumed: recipe: expected "),
        (["--resume", "--recipe", "default"], "can't be resumed: recipe: expected "),
        (["--resume", "--threads", 2], "can't be resumed: threads: expected 2, got a checkpoint of 1"),
    ],
    ids=["no choice", "another seed", "other epochs", "another recipe", "other threads"],
)
def test_conflicting_run_is_refused(
    fashion: FashionMNIST, interrupted: Finished, threads_kept: None, changed: list[object], message: str
) -> None:
    before = contents(interrupted.out)
    done = invoke(*chapter(fashion, interrupted.out), *changed)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    [line] = [line for line in done.output.splitlines() if "error:" in line]
    assert message in line
    assert str(interrupted.out) in line
    assert contents(interrupted.out) == before


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_damaged_checkpoint_is_refused_and_can_be_overwritten(small: None, tmp_path: Path, size: int) -> None:
    options = ["--out", tmp_path, "--device", "cpu"]
    assert invoke(*options).exit_code == 0
    weights = weights_sha256(tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    refused = invoke(*options, "--resume")
    assert refused.exit_code == 1
    assert "can't be resumed" in refused.output
    assert "start again with --overwrite" in refused.output
    assert invoke(*options, "--overwrite").exit_code == 0
    assert weights_sha256(tmp_path) == weights


def test_resuming_a_finished_run_does_no_further_epoch(small: None, tmp_path: Path) -> None:
    options = ["--out", tmp_path, "--device", "cpu"]
    assert invoke(*options).exit_code == 0
    before, weights = rows(tmp_path), weights_sha256(tmp_path)
    done = invoke(*options, "--resume")
    assert done.exit_code == 0, done.output
    assert "going on after epoch 2 of 2" in done.output
    assert epoch_lines(done.output) == []
    assert (rows(tmp_path), weights_sha256(tmp_path)) == (before, weights)


def test_resume_repairs_a_log_behind_the_checkpoint(small: None, tmp_path: Path) -> None:
    options = ["--out", tmp_path, "--device", "cpu"]
    assert invoke(*options).exit_code == 0
    before = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(before.splitlines(keepends=True)[0])
    assert invoke(*options, "--resume").exit_code == 0
    assert (tmp_path / "log.jsonl").read_text() == before


def test_an_unknown_recipe_is_refused_with_the_choices() -> None:
    done = invoke("--recipe", "nonsense")
    assert done.exit_code == 2
    assert all(name in done.output for name in ("nonsense", *RECIPES))


def test_help_lists_all_options_and_defaults() -> None:
    with started("--help") as process:
        done = wait(process, Path())
    assert done.code == 0
    for option in ("recipe", "seed", "epochs", "out", "data", "resume", "overwrite", "device", "threads", "publish"):
        assert f"--{option} " in done.stdout
    assert "runs/RECIPE-seedSEED" in done.stdout
    assert "MCD_DATA_DIR" in done.stdout


def test_missing_data_is_one_line_and_exit_code_1(threads_kept: None, tmp_path: Path) -> None:
    done = invoke("--recipe", "chapter", "--data", tmp_path, "--out", tmp_path / "run")
    assert done.exit_code == 1
    [line] = done.output.splitlines()
    assert line.startswith(f"error: Fashion-MNIST was not found in {tmp_path} ")
    assert not (tmp_path / "run").exists()


def test_the_default_recipe_calibrates_with_images_that_it_holds_out(small: None, tmp_path: Path) -> None:
    done = invoke("--out", tmp_path / "run", "--seed", 3, "--threads", 2, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "240 training and 60 calibration images" in done.output
    assert [line.count("calibration loss") for line in epoch_lines(done.output)] == [1, 1]
    artifact = load_artifact(tmp_path / "run" / "artifact")
    card = artifact.card
    assert card["data"]["split"] == {"train": 240, "validation": 0, "calibration": 60, "test": 50}
    assert {(one.estimator, one.samples) for one in artifact.calibrations} == {
        ("eval", 0), ("moments", 0), *(("masks", samples) for samples in (10, 30, 100, 300, 1000)),
    }  # fmt: skip
    assert artifact.novelty is not None
    assert card["metrics"]["test"]["mc"]["calibrated"]["nll"] > 0
    assert card["recipe"]["name"] == "default"
    assert (card["seed"], card["threads"]) == (3, 2)


def test_the_convolutional_recipe_ends_in_a_compiled_artifact_that_can_be_evaluated(
    small: None, fashion: FashionMNIST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = invoke("--recipe", "cnn", "--out", tmp_path / "run", "--device", "cpu")
    assert done.exit_code == 0, done.output
    artifact = load_artifact(tmp_path / "run" / "artifact")
    assert (artifact.config, artifact.input) == (None, FASHION_MNIST)
    assert isinstance(artifact.novelty, FeatureNovelty)
    assert artifact.novelty.poses is not None
    assert {("eval", 0), ("moments", 0), ("masks", 100)} <= {
        (one.estimator, one.samples) for one in artifact.calibrations
    }
    few = FashionMNIST(train=fashion.train, test=fashion.test[:50], source=fashion.source)
    monkeypatch.setattr(training.evaluate, "load_fashion_mnist", lambda _folder: few)
    figures = tmp_path / "figures.json"
    again = CliRunner().invoke(
        training.evaluate.app,
        [str(tmp_path / "run" / "artifact"), "--out", str(figures), "--report", str(tmp_path / "report")],
    )
    assert again.exit_code == 0, again.output
    measured, card = json.loads(figures.read_text()), artifact.card["metrics"]["test"]
    for mode in ("eval", "mc", "moments"):
        assert measured[mode]["calibrated"]["nll"] == pytest.approx(card[mode]["calibrated"]["nll"], abs=1e-6)


def recalibrate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(training.recalibrate, "load_fashion_mnist", training.train.load_fashion_mnist)
    return CliRunner().invoke(training.recalibrate.app, [str(folder)])


def test_an_artifact_is_calibrated_again_without_training(
    small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a card of an earlier version lacks is added; all else has the same bits."""
    assert invoke("--out", tmp_path, "--device", "cpu").exit_code == 0
    folder, kept = tmp_path / "artifact", contents(tmp_path / "artifact")
    card = json.loads((folder / CARD).read_text())
    expected = json.dumps(card, sort_keys=True)
    for calibration in card["calibrations"]:
        for method in ("raps", "mondrian"):
            del calibration["set_scores"][method]
    del card["metrics"]["classes"]
    (folder / CARD).write_text(json.dumps(card))
    assert "mondrian" not in load_artifact(folder).calibrations[0].set_scores
    done = recalibrate(folder, monkeypatch)
    assert done.exit_code == 0, done.output
    found = contents(folder)
    assert json.dumps(json.loads(found.pop(Path(CARD))), sort_keys=True) == expected
    assert found == {path: content for path, content in kept.items() if path != Path(CARD)}


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("recipe", {"name": "adopted"}, "recipe: expected chapter or "),
        (
            "data",
            {"split": {"train": 9, "calibration": 0}},
            "data.split: expected calibration and no validation images",
        ),
        ("data", {"split": {"validation": 9, "calibration": 9}}, "data.split: expected calibration and no validation"),
    ],
)
def test_only_trained_calibrated_artifacts_are_calibrated_again(
    small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: str, value: dict, said: str
) -> None:
    shutil.copytree(PRETRAINED, tmp_path / "copy")
    add_to_card(tmp_path / "copy", {entry: value})
    kept = contents(tmp_path)
    done = recalibrate(tmp_path / "copy", monkeypatch)
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert contents(tmp_path) == kept


def test_validate_holds_out_images_and_ignores_the_test_set(small: None, tmp_path: Path) -> None:
    done = invoke("--out", tmp_path / "run", "--device", "cpu", "--validate")
    assert done.exit_code == 0, done.output
    assert "180 training and 60 validation images" in done.output
    artifact = load_artifact(tmp_path / "run" / "artifact")
    assert artifact.card["data"]["split"] == {"train": 180, "validation": 60, "calibration": 60, "test": 0}
    assert artifact.card["metrics"].keys() == {"last_epoch", "validation"}
    assert artifact.card["command"].endswith(" --validate")
    assert (artifact.calibrations, artifact.novelty) == ((), None)
    other = invoke("--out", tmp_path / "run", "--device", "cpu", "--resume")
    assert other.exit_code == 1
    assert "recipe: expected" in other.output


def test_a_recipe_that_calibrates_nothing_has_nothing_to_validate_with(small: None, tmp_path: Path) -> None:
    done = invoke("--recipe", "chapter", "--out", tmp_path / "run", "--validate")
    assert done.exit_code == 1
    assert "--validate" in done.output
    assert not (tmp_path / "run").exists()


def test_every_seed_trains_on_the_same_split(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []

    def watch(recipe: Recipe, train: Images, held_out: Images, **options: Any) -> Fit:
        splits.append(held_out.images_B)
        return Fit(recipe, train, held_out, **options)

    monkeypatch.setattr(training.train, "Fit", watch)
    for seed in (1, 2):
        assert invoke("--out", tmp_path / str(seed), "--seed", seed, "--device", "cpu").exit_code == 0
    one, other = splits
    assert torch.equal(one, other)


def test_overwrite_starts_again(small: None, tmp_path: Path) -> None:
    for seed in (1, 2, 1):
        done = invoke("--out", tmp_path / "run", "--seed", seed, "--device", "cpu", "--overwrite")
        assert done.exit_code == 0, done.output
        assert len(epoch_lines(done.output)) == 2
        assert load_artifact(tmp_path / "run" / "artifact").card["seed"] == seed


def test_overwrite_leaves_nothing_of_the_old_run(small: None, tmp_path: Path) -> None:
    calibrated = {MAIN, POINTS, WEIGHTS, CARD, NOVELTY, FAILURES, FOLDER}
    for options, files in (((), calibrated), (("--validate",), calibrated - {NOVELTY, FAILURES})):
        done = invoke("--out", tmp_path / "run", "--device", "cpu", "--overwrite", *options)
        assert done.exit_code == 0, done.output
        assert {path.name for path in (tmp_path / "run" / "artifact").iterdir()} == files


def test_ctrl_c_in_the_final_measurement_loses_no_epoch(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    options = ["--out", tmp_path / "run", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(training.train, "estimate", interrupt)
        done = invoke(*options)
    assert done.exit_code == 130
    assert "go on with --resume" in done.output
    resumed = invoke(*options, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert epoch_lines(resumed.output) == []


def test_a_member_of_an_ensemble_goes_without_a_novelty_score(small: None, tmp_path: Path) -> None:
    options = ["--seed", 0, "--out", tmp_path / "run", "--device", "cpu"]
    assert invoke(*options).exit_code == 0
    full = load_artifact(tmp_path / "run" / "artifact")
    assert full.novelty is not None
    assert invoke(*options, "--no-novelty", "--resume").exit_code == 0
    member = load_artifact(tmp_path / "run" / "artifact")
    assert member.novelty is None
    assert not (tmp_path / "run" / "artifact" / "novelty.safetensors").exists()
    assert (member.sha256, member.calibrations) == (full.sha256, full.calibrations)
    assert member.card["command"] == "python -m training.train --recipe default --seed 0 --threads 1 --no-novelty"


def test_resume_without_a_run_starts_one(small: None, tmp_path: Path) -> None:
    done = invoke("--out", tmp_path / "run", "--device", "cpu", "--resume")
    assert done.exit_code == 0, done.output
    assert len(epoch_lines(done.output)) == 2


def test_the_folder_is_named_by_recipe_and_seed(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("--seed", 5, "--device", "cpu").exit_code == 0
    assert (tmp_path / "runs" / "default-seed5" / "artifact" / "card.json").exists()


@pytest.mark.parametrize("folder", ["[old]", "[/old]"])
def test_brackets_in_a_path_are_printed_literally(small: None, tmp_path: Path, folder: str) -> None:
    out = tmp_path / folder
    done = invoke("--out", out, "--device", "cpu")
    assert done.exit_code == 0
    assert f"artifact {out}/artifact, " in done.output
    again = invoke("--out", out, "--device", "cpu")
    assert again.exit_code == 1
    assert f"{out} has a run already" in again.output
