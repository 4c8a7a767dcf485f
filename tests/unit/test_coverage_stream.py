"""Coverage and alarms on images that change."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from server import ROOT
from typer.testing import CliRunner

from model import ArtifactError, load_artifact
from model.adaptive_conformal import METHODS, STEP
from model.calibration import COVERAGES
from model.coverage import Coverage
from training.coverage_stream import ANGLE, CoverageStream, app, follow_one
from training.shifts import rotate

FOUND = json.loads((ROOT / "docs" / "results" / "coverage.json").read_text())
PAGE = (ROOT / "docs" / "results.md").read_text()


@pytest.fixture(scope="module")
def stream() -> CoverageStream:
    return CoverageStream(load_artifact())


def rows(start: str, end: str) -> list[list[str]]:
    """Cells of the rows between two texts of the page, without the first two rows."""
    part = PAGE[PAGE.index(start) : PAGE.index(end)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*$", part, re.MULTILINE)][
        2:
    ]


def test_turned_images_alarm_and_upright_ones_do_not(fashion, stream):
    upright = fashion.test[:300]
    _, scores_BM = stream.scores(upright)
    _, turned_BM = stream.scores(rotate(upright[:100], 90))
    assert stream.alarm(stream.follow(scores_BM)) is None
    states = stream.follow(np.concatenate([scores_BM, turned_BM]))
    assert 300 < stream.alarm(states) < 340
    assert states[-1].adaptive_ML.min() > states[-1].static_ML.min()


def test_one_threshold_follows_as_all_together_do(stream):
    scores_BM = np.random.default_rng(77).beta(3, 1, (400, len(METHODS)))
    states = [Coverage.start(), *stream.follow(scores_BM)]
    for row, column in np.ndindex(len(METHODS), len(COVERAGES)):
        threshold = float(stream.thresholds_ML[row, column])
        is_covered_B, _ = follow_one(scores_BM[:, row], threshold, coverage=COVERAGES[column], step=STEP)
        assert states[-1].adaptive_ML[row, column] == pytest.approx(is_covered_B.mean())


def test_artifacts_without_calibration_and_folders_without_data_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"calibrations: expected one for 100 masks, got none"):
        CoverageStream(replace(load_artifact(), calibrations=()))
    for arguments in (["--data", str(tmp_path)], [str(tmp_path)]):
        done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
        assert done.exit_code == 1
        assert str(tmp_path) in done.stderr
        assert not (tmp_path / "out").exists()


def test_documented_coverage_is_that_of_the_measurement():
    sets = FOUND["rotation"]["sets"]
    names = [f"{method} 0.9 {kind}" for method in METHODS for kind in ("static", "adaptive")]
    found = rows("Coverage for a requested 0.9", "![Coverage of static")
    for place, (_, *cells) in enumerate(found):
        expected = [f"{sets[name]['coverage'][place]:.3f}" for name in names]
        assert cells == expected + [f"{sets[name]['classes'][place]:.2f}" for name in names[:2]]
    assert len(found) == 8
    assert min(sets["lac 0.9 adaptive"]["coverage"]) >= 0.87 > max(sets["lac 0.9 static"]["coverage"][1:])
    assert f"after {FOUND['rotation']['alarm']} images" in PAGE
    assert ANGLE == 40


def test_documented_alarms_are_those_of_the_measurement():
    alarms = FOUND["alarms"]
    assert f"sounds in {alarms['false_alarms']} of {alarms['runs']} runs over all {alarms['images']:,}" in PAGE
    for angle, coverage, count, median, longest in rows("After an abrupt rotation", "The step of the thresholds"):
        delays = [delay for delay in alarms["delays"][angle.strip("°")] if delay is not None]
        assert coverage == f"{alarms['coverage_lac_0.9'][angle.strip('°')]:.3f}"
        assert count == f"{len(delays)} of {alarms['runs']}"
        if len(delays) == alarms["runs"]:
            assert (median, longest) == (f"{np.median(delays):g}", f"{max(delays)}")


def test_documented_steps_are_those_of_the_measurement():
    for step, *cells in rows("The lowest coverage of the adaptive lac sets", "It is the smallest of these steps"):
        *lowest, classes = FOUND["steps"][step].values()
        assert cells == [*(f"{one:.3f}" for one in lowest), f"{classes:.3f}"]
    assert FOUND["step"] == STEP
