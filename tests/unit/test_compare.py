from pathlib import Path

import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from model import MLPConfig, build_mlp, save_artifact
from training.compare import app, interval
from training.terminal import console

CONFIG = MLPConfig(hidden=(4,), dropout=(0.0,), classes=2)  # without dropout nothing is compiled


def run(folder: Path, seed: int, accuracy: float, recipe: str = "default") -> Path:
    torch.manual_seed(seed)
    figures = {"accuracy": accuracy, "nll": 0.3, "brier": 0.1, "ece": 0.02}
    test = {"eval": figures | {"calibrated": figures | {"ece": 0.01}}, "mc": figures}
    card = {"classes": ["a", "b"], "seed": seed, "recipe": {"name": recipe}, "metrics": {"test": test}}
    save_artifact(folder / str(seed), build_mlp(CONFIG), CONFIG, card)
    return folder / str(seed)


def test_the_interval_is_students():
    values = [0.90, 0.92, 0.91, 0.94]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=0.9175, scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        interval([0.9])


def test_a_table_shows_mean_and_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_width", 200)
    runs = [str(run(tmp_path, seed, 0.9 + 0.01 * seed)) for seed in range(3)]
    done = CliRunner().invoke(app, runs)
    assert done.exit_code == 0, done.output
    assert "3 runs, seeds 0, 1, 2" in done.output
    assert "0.9100 ± 0.0248" in done.output
    assert "eval, calibrated" in done.output
    assert "mc, calibrated" not in done.output


def test_runs_of_different_recipes_or_without_figures_are_refused(tmp_path):
    runs = [str(run(tmp_path, 0, 0.9)), str(run(tmp_path, 1, 0.9, recipe="other"))]
    for given, message in (
        (runs, "must share one recipe"),
        (runs[:1], "at least two runs"),
        ([str(tmp_path)], "card.json"),
    ):
        done = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
        assert done.exit_code == 1
        assert message in done.output
