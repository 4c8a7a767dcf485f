import io
import re

import pytest
from rich.console import Console

from training.tables import FigureTable, calibration_tables, detection_tables, prediction_tables, shift_tables

FIGURES = {
    "eval": {"accuracy": 0.90123, "nll": 0.28123, "brier": 0.13123, "ece": 0.01123, "entropy": 0.23123},
    "mc": {
        "samples": 37, "seed": 21, "accuracy": 0.91234, "nll": 0.27234, "brier": 0.12234, "ece": 0.02234,
        "entropy": 0.30234, "mutual_information": 0.04234,
        "calibrated": {
            "accuracy": 0.91234, "nll": 0.25234, "brier": 0.11234, "ece": 0.00234,
            "prediction_sets": {"lac": {"0.9": {"covered": 0.89, "size": 1.25}}},
            "max_risk": {"0.05": {"answered": 0.875, "error": 0.0425}},
        },
    },
    "moments": {"accuracy": 0.92345, "nll": 0.26345, "brier": 0.12345, "ece": 0.01345, "entropy": 0.24345},
}  # fmt: skip


def printed(table: FigureTable) -> str:
    console = Console(width=120, file=io.StringIO(), markup=False)
    console.print(table.as_rich())
    return console.file.getvalue()


def cells(table: FigureTable) -> dict[str, list[str]]:
    return {row[0]: [cell for cell in row[1:] if cell] for row in table.rows}


def test_terminal_and_html_show_the_same_table():
    table = FigureTable(
        "Now & then", ["<what>", "how many"], [["a", "0.1"], ["[bold]", "12.5"]], "note < this", text_columns=1
    )
    text, page = printed(table), table.as_html()
    name = ' class="name"'
    assert "<h3>Now &amp; then</h3>" in page
    assert re.findall(r"<(t[hd])(?: scope=\"\w+\")?( class=\"name\")?>(.*?)</\1>", page) == [
        ("th", name, "&lt;what&gt;"), ("th", "", "how many"),
        ("th", name, "a"), ("td", "", "0.1"), ("th", name, "[bold]"), ("td", "", "12.5"),
    ]  # fmt: skip
    assert "<p>note &lt; this</p>" in page
    for part in ("Now & then", "<what>", "how many", "[bold]", "12.5", "note < this"):
        assert part in text


def test_every_way_of_predicting_has_its_row():
    quality, doubts = prediction_tables(FIGURES, "9 test images")
    assert quality.title == "9 test images"
    assert "37 masks, seed 21" in quality.note
    assert cells(quality) == {
        "eval": ["0.9012", "0.2812", "0.1312", "0.0112"],
        "mc": ["0.9123", "0.2723", "0.1223", "0.0223"],
        "mc, calibrated": ["0.9123", "0.2523", "0.1123", "0.0023"],
        "moments": ["0.9234", "0.2635", "0.1235", "0.0135"],
    }
    assert cells(doubts)["mc"] == ["0.3023", "0.0423"]


def test_numbers_of_masks_and_other_models_have_theirs():
    few, other = FIGURES["eval"] | {"nll": 1.0}, FIGURES["eval"] | {"nll": 2.0}
    quality, _ = prediction_tables(FIGURES | {"masks": {"2": few}, "beside": {"other": {"eval": other}}}, "")
    assert [row[:3] for row in quality.rows] == [
        ["eval", "0.9012", "0.2812"], ["2 masks", "0.9012", "1.0000"], ["moments", "0.9234", "0.2635"],
        ["other: eval", "0.9012", "2.0000"],
    ]  # fmt: skip


def test_promises_are_those_that_were_made():
    sets, answers = calibration_tables(FIGURES)
    assert sets.rows == [["mc", "LAC", "0.9", "0.8900", "1.2500"]]
    assert answers.rows == [["mc", "0.05", "0.0425", "0.8750"]]
    assert calibration_tables(FIGURES | {"mc": FIGURES["eval"]}) == []


def test_missing_decisions_have_no_table():
    strange = {"ood": {"noise": {"novelty": {"auroc": 1.0, "aupr": 0.5, "fpr95": 0.25}}}}
    (apart,) = detection_tables(strange)
    assert apart.rows == [["noise", "novelty", "1.0000", "0.5000", "0.2500"]]
    _, decided = detection_tables(strange | {"decisions": {"noise": {"novel": 1.0, "answered": 0.0}}})
    assert decided.rows == [["noise", "1.0000", "0.0000", ""]]


@pytest.mark.parametrize("decided", [False, True])
def test_shifts_have_a_table_for_each_figure(decided):
    row = {"eval": {"accuracy": 0.5}, "mc": {"accuracy": 0.25, "ece": 0.125, "entropy": 1.0, "mutual_information": 0.5}}
    if decided:
        row |= {"decision": {"novel": 0.75, "answered": 0.0}}
    found = {
        table.title: table.rows
        for table in shift_tables({"rotation": {"15": row}, "corruptions": {"blur": {"1": row}}})
    }
    assert found["Rotation"][0][:4] == ["15", "0.5000", "0.2500", "0.1250"]
    assert found["Corruption: mutual information, mc"] == [["blur", "0.5000"]]
    assert ("Corruption: novel, mc" in found) == decided
    assert "Corruption: wrong among the answered, mc" not in found  # nothing was answered
