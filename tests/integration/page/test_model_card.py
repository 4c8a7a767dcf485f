"""The model card in a browser: the served page, and the one of docs/model-card, which needs no server."""

import json

import pytest
from playwright.sync_api import Page, expect
from server import ROOT
from ui_page import open_page, percent

from benchmarks.page import VIEWS
from model import load_artifact

TWO_SCREENS = 2000  # pixels
PUBLISHED = (ROOT / "docs" / "model-card" / "index.html").as_uri()
CARD = load_artifact().card


@pytest.fixture(params=["served", "published"])
def url(request) -> str:
    """Address of the page."""
    return f"{request.getfixturevalue('server').url}/ui/card" if request.param == "served" else PUBLISHED


def details_top(page: Page) -> float:
    return page.locator("details").first.evaluate("one => one.getBoundingClientRect().top + scrollY")


@pytest.mark.parametrize("view", VIEWS)
def test_what_decides_comes_on_the_first_two_screens(browser, url, view):
    with open_page(browser, url, path="", **VIEWS[view]) as page:
        assert page.locator("details[open]").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if view != "narrow":
            assert details_top(page) <= TWO_SCREENS
        for heading in ("Intended use", "Data", "Figures", "Known failures"):
            found = page.locator("main > :not(#details)").get_by_role("heading", name=heading)
            assert 0 < found.bounding_box()["y"] < details_top(page)
        expect(page.locator(".figures dd.value")).to_have_count(5)
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_figures_and_failures_are_those_of_the_card(browser, url):
    masks = CARD["metrics"]["test"]["mc"]["calibrated"]
    sets, answers = masks["prediction_sets"]["lac"]["0.9"], masks["max_risk"]["0.05"]
    with open_page(browser, url, path="") as page:
        shown = [text.replace("\u00a0", " ") for text in page.locator(".figures dd.value").all_inner_texts()]
        assert shown == [
            percent(masks["accuracy"]), f"{masks['nll']:.3f}", percent(masks["ece"]), percent(sets["covered"]),
            percent(answers["answered"]),
        ]  # fmt: skip
        captions = [caption for kind in CARD["failures"]["kinds"] for caption in kind["images"]]
        pictures = page.get_by_role("img").and_(page.locator("svg"))
        named = pictures.evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
        assert [name.replace("\u00a0", " ") for name in named] == captions
        assert len({pictures.nth(place).screenshot() for place in range(4)}) == 4  # loaded, and different parts
        assert load_artifact().sha256 in page.content()
        assert page.locator("img").evaluate_all("all => all.every((one) => one.naturalWidth > 100)")


def test_the_page_prints_what_is_folded(browser, url):
    with open_page(browser, url, path="") as page:
        row = page.get_by_role("row", name="without dropout, calibrated")
        assert not row.is_visible()
        page.emulate_media(media="print")
        assert row.bounding_box()["height"] > 10


def test_the_published_page_has_its_figures(browser):
    figures = json.loads((ROOT / "docs" / "model-card" / "figures.json").read_text())
    with open_page(browser, PUBLISHED, path="") as page:
        page.get_by_text("Quantitative analyses").click()
        row = page.get_by_role("row", name="MNIST novelty")
        expect(row).to_contain_text(f"{figures['ood']['MNIST']['novelty']['auroc']:.4f}")
