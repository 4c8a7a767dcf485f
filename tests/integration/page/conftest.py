"""One browser for the session, and a page of the shared server."""

from collections.abc import Iterator

import pytest
from conftest import missing
from playwright.sync_api import Browser, Page, sync_playwright
from ui_page import open_page, wait_for_prediction

from benchmarks.page import chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or the one that playwright has installed."""
    with sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            missing("Chromium: Debian's package chromium-headless-shell, or .venv/bin/playwright install chromium")
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """A new page of the shared server, with its first prediction."""
    with open_page(browser, server.url) as opened:
        wait_for_prediction(opened)
        yield opened


@pytest.fixture(scope="module")
def shared_page(browser, server) -> Iterator[Page]:
    """One page for all tests of a file that choose their own image first."""
    with open_page(browser, server.url) as opened:
        wait_for_prediction(opened)
        yield opened
