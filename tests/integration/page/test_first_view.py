"""What a visitor gets first: the page, its size, the way to it and to the model card."""

from playwright.sync_api import Response, expect
from ui_page import label, open_page, wait_for_figure

from benchmarks.page import VIEWS
from model import load_artifact

MAX_FIRST_VIEW_BYTES = 150_000


def test_first_view_is_small_and_loads_from_the_service_only(browser, server):
    context = browser.new_context(**VIEWS["light"])
    page = context.new_page()
    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response))  # noqa: PLW0108 - playwright marks its listeners
    page.goto(f"{server.url}/ui")
    wait_for_figure(page)
    files = [one for one in responses if one.request.method == "GET" and "/examples/" not in one.url]
    assert {one.url.startswith(server.url + "/") for one in responses} == {True}
    assert {one.status for one in responses} == {200}
    total = sum(sum(one.request.sizes()[part] for part in ("responseBodySize", "responseHeadersSize")) for one in files)
    assert len(files) > 10
    assert total < MAX_FIRST_VIEW_BYTES
    assert label(page) == "ankle boot"
    responses.clear()
    page.reload()
    wait_for_figure(page)
    scripts = [one for one in responses if one.url.endswith((".js", ".css"))]
    assert {one.request.sizes()["responseBodySize"] for one in scripts} == {0}  # revalidated, not sent again
    context.close()


def test_api_page_links_to_the_page(browser, server):
    context = browser.new_context(**VIEWS["light"])
    page = context.new_page()
    page.goto(f"{server.url}/")
    with context.expect_page() as opened:
        page.get_by_role("link", name="Try it in the browser").click()
    wait_for_figure(opened.value)
    assert opened.value.url == f"{server.url}/ui"
    context.close()


def test_card_page_shows_the_model_card(browser, server):
    with open_page(browser, server.url, path="/ui/card") as page:
        metrics = load_artifact().card["metrics"]["test"]
        expect(page.locator("#facts")).to_contain_text(load_artifact().sha256)
        row = page.locator("#accuracy tr", has=page.get_by_role("rowheader", name="100 masks", exact=True))
        assert row.locator("td").all_inner_texts() == [
            f"{100 * metrics['mc']['accuracy']:.1f} %", f"{metrics['mc']['nll']:.4f}", f"{metrics['mc']['ece']:.4f}",
        ]  # fmt: skip
        assert page.locator("#coverage tbody tr").count() == 4
        assert page.locator("#abstention tbody tr").count() == 3
        page.get_by_role("link", name="Try it").click()
        wait_for_figure(page)
