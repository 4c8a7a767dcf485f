"""The page of the model card: what it opens with, its sections, and cards that anybody may have written."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server import ROOT

from model import load_artifact
from model.artifact import FAILURES
from model.card_page import STYLE, Picture, Table, card_page
from model.card_page.contents import answer_table, class_table
from training.report import write_report_page

CARD = load_artifact().card
HEADINGS = [
    "Intended use", "Data", "Figures", "Known failures", "Model details", "Intended use", "Factors", "Metrics",
    "Evaluation data", "Training data", "Quantitative analyses", "Ethical considerations",
    "Caveats and recommendations",
]  # fmt: skip
_VOID = {"meta", "link", "img", "image"}
_WORDS = """metrics test mc eval calibrated prediction_sets lac 0.9 max_risk 0.05 covered size answered error accuracy
    nll ece samples data name split train calibration recipe guarantees tested missing guarantee found holds
    intended_use ethical_considerations versions command injected_dropout ood auroc images graph image dropout
    classes mondrian"""
_NAMES = st.sampled_from(_WORDS.split())
_TEXTS = st.text("ab<&\"'\u00e9\ud800 ", max_size=5) | st.just("<script>")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=30,
)


class Outline(HTMLParser):
    """Headings and text of a page; fails on elements that don't close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.names: set[str] = set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(f"{tag} {name}" for name, _ in attrs)}
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "image":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        self.text += data


def outline(card: dict, **options) -> Outline:
    return Outline(card_page(card, head="", **options))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_the_page_opens_with_what_decides_and_has_the_sections_of_mitchell():
    page = outline(CARD)
    assert page.headings == HEADINGS
    before = plain(page.text.split("Model details")[0])
    calibrated = CARD["metrics"]["test"]["mc"]["calibrated"]
    for words in (
        CARD["intended_use"], "55,000 images to train, 5,000 others to calibrate", "10,000 images",
        f"{100 * calibrated['accuracy']:.1f} %", f"{calibrated['prediction_sets']['lac']['0.9']['size']:.2f} classes",
        *(kind["text"] for kind in CARD["failures"]["kinds"]),
        *(caption for kind in CARD["failures"]["kinds"] for caption in kind["images"]),
    ):  # fmt: skip
        assert words in before


def test_each_caption_has_its_part_of_the_picture():
    page = card_page(CARD, head="")
    captions = [caption for kind in CARD["failures"]["kinds"] for caption in kind["images"]]
    parts = re.findall(
        rf'viewBox="(\d+) 0 1 1" role="img" aria-label="([^"]*)"><image href="{FAILURES}" width="(\d+)"', page
    )
    assert [int(first) for first, _, _ in parts] == list(range(len(captions)))
    assert {int(count) for _, _, count in parts} == {len(captions)}


def test_the_page_has_no_script_no_inline_style_and_loads_nothing_from_elsewhere():
    names = outline(CARD, analyses=[Picture("a.png", "A & b"), Table("T", ["x"], [["1"]])]).names
    assert not names & {"script", "style", "iframe", "object"}
    assert not [name for name in names if re.search(r" (style|on\w+)$", name)]
    assert not re.search(r"url\(|@import|https?:", STYLE)


@settings(max_examples=100, deadline=None)
@given(_JSON, st.dictionaries(_NAMES, _JSON))
def test_any_card_makes_a_page(metrics, others):
    """Entries of other kinds than ours are left out; no JSON is shown, nothing is taken as markup."""
    card = {"metrics": {"test": {"mc": metrics}, "classes": metrics}} | others
    card |= {
        "classes": ["<b>", "\ud800"],
        "graph": {"image": [1, 2, 2], "dropout": [{"name": "", "p": 0.5}], "sha256": "0"},
    }
    found = outline(card)
    assert found.headings == HEADINGS
    assert not found.names & {"script", "b"}
    assert not re.search(r"[{}]|None(?! are recorded)|nan|inf", found.text)


def test_a_card_without_figures_says_so():
    page = outline({"classes": ["a", "b"], "graph": {"image": [1, 2, 2], "dropout": []}})
    assert page.text.count("No figures are stored with this network.") == 2
    assert "None are recorded with this network." in page.text


def test_an_adopted_network_has_its_guarantees_and_what_is_not_known_of_it():
    tested = [{"guarantee": "sets of coverage 0.9", "found": "0.91 covered", "holds": True}]
    card = {key: CARD[key] for key in ("classes", "graph", "metrics")} | {
        "recipe": {"name": "adopted"},
        "data": {"images": 50, "split": {"calibration": 20, "test": 30, "fraction": 0.4}},
        "guarantees": {"tested": tested, "missing": ["at most 1% of the answers wrong: too few"]},
        "intended_use": "Sorts post.",
    }
    text = plain(outline(card).text)
    for words in (
        "Sorts post.", "Calibrated with 20 images", "Tested with 30 images", "sets of coverage 0.90.91 coveredyes",
        "No guarantee for at most 1% of the answers wrong: too few.", "somebody else trained the network",
        "Not assessed for this network.",
    ):  # fmt: skip
        assert words in text
    del card["intended_use"]
    assert "No purpose was stated." in outline(card).text


def test_the_published_page_is_current(tmp_path):
    """If it is not: python -m training.report docs/model-card."""
    published = ROOT / "docs" / "model-card"
    (tmp_path / "figures.json").write_bytes((published / "figures.json").read_bytes())
    write_report_page(tmp_path, load_artifact())
    for name in ("index.html", FAILURES):
        assert (published / name).read_bytes() == (tmp_path / name).read_bytes(), name
    pictures = re.findall(r'(?:src|href)="([^"]+\.png)"', (published / "index.html").read_text())
    assert {*pictures, "index.html", "figures.json"} == {path.name for path in published.iterdir()}


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.5, 0.99999, 1.0])
def test_shares_that_round_to_nothing_or_all_are_said_to_be_less(share):
    card = CARD | {"metrics": {"test": {"mc": {"accuracy": share}}}}
    expected = {0.00001: "< 0.1 %", 0.99999: "> 99.9 %"}.get(share, f"{100 * share:.1f} %")
    assert f"Accuracy{expected}" in plain(outline(card).text)


def test_dropout_that_was_inserted_is_named_with_its_limit():
    injected = CARD | {"injected_dropout": {"p": 0.25, "before": "head.last"}}
    text = Outline(card_page(injected, head="")).text
    assert "p 0.25, before head.last" in text
    assert "Dropout was inserted after training" in text
    assert "Dropout was inserted after training" not in Outline(card_page(CARD, head="")).text


@pytest.mark.parametrize("classes", [3, 13])
def test_coverage_by_class_names_the_least_covered_of_many(classes):
    by_class = {
        f"k{place}": {"prediction_sets": {
            method: {"0.9": {"covered": 1 - place / 20, "size": 1 + place / 10}} for method in methods
        }}
        for place, methods in enumerate([("lac", "mondrian"), ("lac",)] + [("lac", "mondrian")] * (classes - 2))
    }  # fmt: skip
    table = class_table({"metrics": {"classes": by_class}})
    rows = {name: cells for name, *cells in table.rows}
    assert list(rows) == [f"k{place}" for place in (range(3) if classes == 3 else range(12, 0, -1))]
    assert rows["k1"] == ["95.0 %", "1.10", "", ""]
    assert rows["k2"] == ["90.0 %", "1.20", "90.0 %", "1.20"]
    assert ("the card has all 13" in table.note) == (classes == 13)
    assert class_table({}).rows == []


def test_a_risk_without_guarantee_has_no_row():
    card = {
        "classes": ["a", "b"],
        "metrics": {"test": {"mc": {"calibrated": {"max_risk": {
            "0.01": {"answered": 0.0, "error": 0.0}, "0.05": {"answered": 0.75, "error": 0.04}
        }}}}},
    }  # fmt: skip
    assert answer_table(card).rows == [["5.0 %", "75.0 %", "4.0 %"]]


def test_what_the_novelty_score_finds_is_on_the_page():
    found = {"noise": {"images": 100, "auroc": 0.875, "flagged at 0.05": 0.75}}
    metrics = CARD["metrics"] | {"ood": found}
    text = Outline(card_page(CARD | {"metrics": metrics}, head="")).text
    for words in ("out-of-distribution images", "noise", "0.875", "75.0"):
        assert words in text
    assert "out-of-distribution images" not in Outline(card_page(CARD, head="")).text


def test_the_ordinary_variations_of_poses_are_on_the_page():
    ordinary = {"rotation, degrees": 3.5, "scale": [0.93, 1.04], "mirrored horizontally": True}
    text = Outline(card_page(CARD | {"novelty": {"poses": {"ordinary": ordinary}}}, head="")).text
    for words in (
        "Ordinary variations",
        "rotation, degrees",
        "3.5",
        "0.93 to 1.04",
        "turned, moved, reduced or covered",
    ):
        assert words in text
    without = {name: value for name, value in CARD.items() if name != "novelty"}
    assert "Ordinary variations" not in Outline(card_page(without, head="")).text
