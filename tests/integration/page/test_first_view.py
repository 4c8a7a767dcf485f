"""What a visitor gets first: the page, its size, the way to it and to the model card."""

from playwright.sync_api import Response, expect
from ui_page import label, open_page, wait_for_figure

from benchmarks.page import VIEWS

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


def test_the_way_to_the_card_and_back(browser, server):
    with open_page(browser, server.url) as page:
        page.get_by_role("link", name="Model card", exact=True).click()
        expect(page.get_by_role("heading", name="Known failures")).to_be_visible()
        page.get_by_role("link", name="Try it").click()
        wait_for_figure(page)
