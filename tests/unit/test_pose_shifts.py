"""Transformed images of which `training.pose_shifts` measures what is answered."""

import json
import re

import numpy as np
import pytest
import torch
from bars import images
from server import ROOT

from training.pose_shifts import TRANSFORMATIONS

# The rows that the evaluation measures too: kind and degree there.
MEASURED = {
    "none": ("rotation", "0"), "slightly blurred": ("corruptions", "blur", "1"),
    "slightly noisy": ("corruptions", "noise", "1"),
    **{f"turned by {degrees}°": ("rotation", str(degrees)) for degrees in (15, 30, 45, 90, 180)},
    "moved by 4 pixels": ("corruptions", "shift", "4"), "reduced to 70 %": ("corruptions", "scale", "3"),
    "covered by 8 x 8 pixels": ("corruptions", "occlusion", "2"),
    "covered by 12 x 12 pixels": ("corruptions", "occlusion", "4"), "sheared by 15°": ("corruptions", "shear", "3"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformation_keeps_shape_and_classes(name):
    before = images(20, 1)
    after = TRANSFORMATIONS[name][1](before)
    assert after.images_B.shape == before.images_B.shape
    assert after.images_B.dtype == torch.uint8
    assert torch.equal(after.labels_B, before.labels_B)
    assert torch.equal(after.images_B, before.images_B) == (name == "none")


def test_squeezed_images_keep_their_width():
    before = images(4, 1)
    before.images_B[:] = 200
    squeezed_BHW = TRANSFORMATIONS["squeezed to 60 % of the height"][1](before).images_B.numpy()
    assert ((squeezed_BHW > 100).any(axis=2).sum(axis=1) == 17).all()
    assert ((squeezed_BHW > 100).any(axis=1).sum(axis=1) == 28).all()


def test_the_table_of_the_results_has_all_rows_and_the_measured_figures():
    figures = json.loads((ROOT / "docs" / "model-card" / "figures.json").read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    table = text[text.index("| transformation |") :].partition("\n\n")[0]
    rows = {cells[0]: cells[1:] for cells in (re.split(r" \| ", line.strip("| ")) for line in table.splitlines()[2:])}
    assert {name: kind for name, (kind, *_) in rows.items()} == {
        name: kind for name, (kind, _) in TRANSFORMATIONS.items()
    }
    for name, path in MEASURED.items():
        found = figures
        for part in path:
            found = found[part]
        decision = found["decision"]
        expected = [decision["novel"], decision["answered"], decision["answered"] * decision.get("error", 0)]
        assert np.array(rows[name][1:], float) == pytest.approx(expected, abs=6e-4), name
