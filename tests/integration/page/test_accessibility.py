"""The page for everybody: axe, and the keyboard alone."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from ui_page import assert_shows, choose_file, gallery_file, move_slider, open_page, predict_both, wait_for_figure

from benchmarks.page import VIEWS


def axe_violations(page: Page) -> list[tuple[str, list[str]]]:
    found = Axe().run(page).response["violations"]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_no_violation(browser, server, view):
    with open_page(browser, server.url, faults=("status of 4",), **VIEWS[view]) as page:
        wait_for_figure(page)
        assert axe_violations(page) == []
        page.get_by_text("Decision settings").click()
        page.get_by_text("Table of the means").click()
        page.get_by_role("radio", name="a seven", exact=True).check()
        move_slider(page, "rotation", 33)
        page.get_by_label("all masks (moment propagation)").check()
        expect(page.locator("#dropout-title")).to_have_text("Mean over all masks")
        assert axe_violations(page) == []
        page.get_by_role("button", name="Draw").click()
        expect(page.locator("#warnings li")).not_to_have_count(0)
        assert axe_violations(page) == []
        choose_file(page, "notes.txt", b"no image")
        expect(page.get_by_role("alert")).to_be_visible()
        assert axe_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(f"{server.url}/ui/card")
        assert axe_violations(page) == []
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true })")
        assert axe_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_everything_can_be_used_by_keyboard(page, client):
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the prediction")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prediction")).to_be_focused()
    page.get_by_role("radio", name="ankle boot", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert_shows(page, *predict_both(client, gallery_file("pullover")))
    page.locator("body").evaluate("() => document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.textContent"
            )
        )
    wanted = {
        "image",
        "choose-file",
        "draw",
        "rotation",
        "noise",
        "blur",
        "contrast",
        "occlusion",
        "reset",
        "samples-range",
    }
    assert wanted | {"samples", "seed", "new-seed", "method", "Decision settings", "Model card"} <= reached
    page.locator("#rotation").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#prediction")).to_have_attribute("data-rotation", "1")
