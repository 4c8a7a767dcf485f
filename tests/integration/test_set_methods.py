"""The comparison of set methods by cross-fitting, and the table of docs/results.md that it made."""

import re

import numpy as np
import pytest
from server import ROOT
from typer.testing import CliRunner

from training.set_methods import app, cross_fit


def test_cross_fitted_sets_do_not_profit_from_their_own_images():
    """A network that knows nothing of its images: sets of a coverage have that share of the classes."""
    rng = np.random.default_rng(81)
    labels_B, probs_BC = rng.integers(0, 5, 1000), rng.dirichlet(np.ones(5), size=1000)
    found = cross_fit(probs_BC, labels_B, seed=0)
    for (_, coverage), row in found.items():
        assert row["covered"] == pytest.approx(coverage, abs=0.02)
        assert row["size"] == pytest.approx(5 * coverage, abs=0.15)
        assert row["least covered class"] <= row["covered"]
        assert row["empty"] + row["several"] <= 1
    assert found == cross_fit(probs_BC, labels_B, seed=0) != cross_fit(probs_BC, labels_B, seed=1)


def test_the_table_of_the_results_is_what_the_command_prints(fashion):
    shown = re.findall(r"^\| `(\w+)`, (0\.\d+) \| (.*) \|$", (ROOT / "docs" / "results.md").read_text(), re.MULTILINE)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 0, done.output
    printed = re.findall(r"(lac|aps|raps|mondrian) +│ +(0\.\d+) │(.*)│\n", done.output)
    found = {(method, level): [float(cell) for cell in cells.split("│")] for method, level, cells in printed}
    assert len(shown) == 8
    for method, level, cells in shown:
        assert found[method, level] == pytest.approx([float(cell) for cell in cells.split(" | ")], abs=0.0011)
