"""What the page does without a response: refusals, retries, the API key."""

import json
import re
import time
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from files import encoded
from PIL import Image
from playwright.sync_api import Page, Route, expect
from server import Server, serve
from ui_page import (
    assert_shows,
    choose_file,
    gallery_file,
    label,
    move_slider,
    open_page,
    predict_both,
    wait_for_figure,
    wait_for_prediction,
)

KEY = "Schlüssel zum Dienst"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"no image", "Unsupported image format: the image must be a PNG, JPEG or WEBP file"),
        ("cut.png", gallery_file("shirt")[:300], "Invalid image: the image is broken"),
        ("huge.png", encoded(Image.new("1", (6000, 5000))), "more than 25000000"),
        ("heavy.png", bytes(11 * 2**20), "Body too large: the body must have at most 10485760 bytes"),
        ("empty.png", b"", "image is missing"),
    ],
    ids=["415", "422", "413 pixels", "413 bytes", "empty"],
)  # fmt: skip
def test_a_refused_file_shows_the_problem_and_keeps_the_image(browser, server, client, tmp_path, name, content, words):
    with open_page(browser, server.url, faults=("status of 4",)) as page:
        wait_for_prediction(page)
        (tmp_path / name).write_bytes(content)
        page.locator("#file").set_input_files(tmp_path / name)
        problem = page.get_by_role("alert")
        expect(problem).to_contain_text(words)
        expect(problem).to_contain_text(f"{name}: ")
        assert_shows(page, *predict_both(client, gallery_file("ankle boot")))
        move_slider(page, "rotation", 15)
        expect(problem).to_be_hidden()
        expect(page.locator("#prediction")).to_have_attribute("data-rotation", "15")


def test_an_invalid_parameter_shows_the_problem(browser, server, client):
    with open_page(browser, server.url, faults=("status of 422",)) as page:
        wait_for_prediction(page)
        page.locator("#samples").fill("1")
        expect(page.get_by_role("alert")).to_contain_text(
            "samples must be 0, 2..1000 or auto, got 1: one mask has no spread"
        )
        page.locator("#samples").fill("30")
        expect(page.get_by_role("alert")).to_be_hidden()
        page.locator("#seed").fill("x")
        expect(page.get_by_role("alert")).to_contain_text("seed must be a whole number, got x")
        page.locator("#seed").fill("3")
        assert_shows(page, *predict_both(client, gallery_file("ankle boot"), samples=30, seed=3))


def refuse_once(page: Page, path: str, status: int) -> list[float]:
    """Refuse the first request like a proxy with its own limit; returns the times of all requests."""
    times: list[float] = []

    def handle(route: Route) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            problem = {"title": "Slow down", "detail": "too many for now", "status": status}
            route.fulfill(status=status, headers={"Retry-After": "1"}, body=json.dumps(problem))
        else:
            route.continue_()

    page.route(re.compile(path), handle)
    return times


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("path", [r"/predict\?.*return_pixels", r"/predict_batch\?"], ids=["prediction", "figure"])
def test_retries_after_the_requested_time(browser, server, client, path, status):
    with open_page(browser, server.url, faults=(f"status of {status}",)) as page:
        wait_for_figure(page)
        times = refuse_once(page, path, status)
        page.get_by_role("radio", name="bag", exact=True).check()
        expect(page.locator("#status")).to_have_text("The service is busy: too many for now. Retrying in 1 s.")
        assert_shows(page, *predict_both(client, gallery_file("bag")))
        expect(page.locator("#rotation-summary")).to_contain_text("Upright, the prediction is bag")
        expect(page.locator("#status")).to_be_hidden()
        assert 0.95 < times[1] - times[0] < 4


def test_an_unreachable_service_is_retried(browser, server, client):
    with open_page(browser, server.url, faults=("ERR_INTERNET_DISCONNECTED",)) as page:
        wait_for_prediction(page)
        page.context.set_offline(True)
        move_slider(page, "rotation", 40)
        expect(page.locator("#status")).to_have_text("The service cannot be reached. Retrying in 2 s.")
        move_slider(page, "rotation", 50)
        page.context.set_offline(False)
        expect(page.locator("#prediction")).to_have_attribute("data-rotation", "50")
        expect(page.locator("#status")).to_be_hidden()


def test_a_large_file_is_not_sent_again_after_a_reset(browser, server, client):
    """A proxy with a smaller limit closes the connection; the browser sees nothing else."""
    with open_page(browser, server.url, faults=("ERR_CONNECTION_RESET",)) as page:
        wait_for_prediction(page)
        page.route("**/predict?*", lambda route: route.abort("connectionreset"))
        choose_file(page, "large.png", bytes(3 * 2**20))
        expect(page.get_by_role("alert")).to_contain_text(
            "large.png: Upload failed: the service closed the connection before all 3 MiB"
        )
        page.unroute("**/predict?*")
        assert_shows(page, *predict_both(client, gallery_file("ankle boot")))


@pytest.fixture(scope="module")
def keyed(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keyed")
    with serve(folder / "home", MCD_API_KEYS=KEY) as running:
        yield running


def test_the_api_key_is_requested_and_kept_in_memory_only(browser, keyed):
    with open_page(browser, keyed.url, faults=("status of 401",)) as page:
        dialog = page.get_by_role("dialog", name="This service requires an API key")
        expect(dialog).to_contain_text("the key is missing")
        expect(page.get_by_role("textbox", name="API key")).to_be_focused()
        assert Axe().run(page).response["violations"] == []
        page.get_by_role("textbox", name="API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("the key is not known")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(page.get_by_role("alert")).to_contain_text("the key is not known")
        page.get_by_role("radio", name="bag", exact=True).check()
        page.get_by_role("textbox", name="API key").fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        wait_for_prediction(page)
        assert label(page) == "bag"
        expect(page.locator("#status")).to_be_hidden()
        assert KEY not in page.content()
        assert page.url == f"{keyed.url}/ui"
        page.reload()
        expect(dialog).to_be_visible()
    assert KEY not in keyed.log.read_text()
