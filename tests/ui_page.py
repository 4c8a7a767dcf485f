"""The page under /ui in a browser, as tests use and read it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from server import ROOT

from benchmarks.page import VIEWS
from model import load_artifact

WEB = ROOT / "service" / "web"
CLASSES = load_artifact().classes
_EXAMPLES = {example.name: example.content for example in load_artifact().examples}
_WAIT_MS = 20_000


def gallery_file(name: str) -> bytes:
    return _EXAMPLES[name]


@contextmanager
def open_page(
    browser: Browser, url: str, *, path: str = "/ui", faults: tuple[str, ...] = (), **options
) -> Iterator[Page]:
    """Open a page, and fail on console messages without an expected fault, on cookies and on stored data."""
    context = browser.new_context(**(VIEWS["light"] | options))
    page = context.new_page()
    messages: list[str] = []

    def note(message: ConsoleMessage) -> None:
        expected = (*faults, "willReadFrequently")  # caused by these tests: they read the canvas
        if message.type in {"error", "warning"} and not any(fault in message.text for fault in expected):
            messages.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(url + path)
    try:
        yield page
        assert messages == []
        assert context.cookies() == []
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    finally:
        context.close()


def wait_for_prediction(page: Page) -> None:
    """Wait until the first prediction is shown."""
    expect(page.locator("#label")).not_to_have_text("…", timeout=_WAIT_MS)


def wait_for_figure(page: Page) -> None:
    """Wait until the rotation figure of the first image is shown, which comes last."""
    wait_for_prediction(page)
    expect(page.locator("#rotation-figure svg")).to_be_visible(timeout=_WAIT_MS)


def label(page: Page) -> str:
    return page.locator("#label").inner_text().rstrip("?")


def class_table(page: Page) -> dict[str, tuple[str, str]]:
    """The shown percentages of both predictions, by class."""
    rows = page.locator("#classes tbody tr").evaluate_all(
        "all => all.map((row) => [row, ...row.querySelectorAll('.number')].map((one) => one.textContent))"
    )
    names = page.locator("#classes tbody th").all_inner_texts()
    return {name: tuple(texts[1:]) for name, texts in zip(names, rows, strict=True)}


def percent(part: float) -> str:
    if 0.9995 < part < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < part < 0.0005 else f"{100 * part:.1f} %"


def assert_shows(page: Page, plain: dict, dropout: dict) -> None:
    """Wait until the page shows every number of both predictions."""
    deadline = time.monotonic() + _WAIT_MS / 1000
    while True:
        try:
            assert_shows_now(page, plain, dropout)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            page.wait_for_timeout(50)
        else:
            return


def assert_shows_now(page: Page, plain: dict, dropout: dict) -> None:
    expect(page.locator("#confidence")).to_have_text(percent(dropout["confidence"]))
    expect(page.locator("#eval-result")).to_have_text(f"{plain['label']}, {percent(plain['confidence'])}")
    expect(page.locator("#dropout-result")).to_have_text(f"{dropout['label']}, {percent(dropout['confidence'])}")
    assert label(page) == dropout["label"]
    assert page.locator("#label").inner_text().endswith("?") == dropout["abstain"]
    pairs = zip(plain["probabilities"], dropout["probabilities"], strict=True)
    shown = class_table(page)
    for name, (before, after) in zip(CLASSES, pairs, strict=True):
        # JavaScript rounds halves in another direction.
        for text, part in zip(shown[name], (before, after), strict=True):
            assert text in {percent(part), percent(part + 1e-9), percent(part - 1e-9)}
    members = page.locator("#classes .member th").all_inner_texts()
    assert set(members) == set(dropout["prediction_set"] or ())
    decision = page.locator("#decision").inner_text()
    assert {"risk": "low confidence", "novelty": "out-of-distribution", None: "Answers"}[
        dropout["abstain_reason"]
    ] in decision
    spread = dropout["uncertainty"]
    values = [spread[name] for name in ("expected_entropy", "mutual_information", "predictive_entropy")]
    assert page.locator("#entropies strong").all_inner_texts() == [f"{value:.3f}" for value in values]
    dots = page.locator("#classes tbody .dots").evaluate_all(
        "all => all.map(one => one.getAttribute('d').split('M').length - 1)"
    )
    assert dots == [dropout["samples"]] * len(CLASSES)
    warnings = page.locator("#warnings li").all_inner_texts()
    assert warnings == dropout["warnings"]


def predict_both(client: httpx.Client, body: bytes, **params: object) -> tuple[dict, dict]:
    """The predictions without and with dropout, requested like the page does."""
    sampling = {"samples": 100, "seed": 0} if "method" not in params else {}
    plain = {name: params[name] for name in ("invert",) if name in params}
    answers = [client.post("/predict", content=body, params=one) for one in (plain, sampling | params)]
    assert [answer.status_code for answer in answers] == [200, 200]
    return answers[0].json(), answers[1].json()


def choose_file(page: Page, name: str, content: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": content})


def move_slider(page: Page, name: str, value: float) -> None:
    slider = page.locator(f"#{name}")
    slider.evaluate("(one, value) => { one.value = value; one.dispatchEvent(new Event('input')); }", str(value))


def shown_pixels(page: Page) -> list[list[int]]:
    """The pixels on the canvas."""
    return page.locator("#network-input").evaluate(
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, 28, 28);
          return [...Array(28).keys()].map((y) => [...Array(28).keys()].map((x) => data[4 * (28 * y + x)]));
        }"""
    )


def shown_colours(page: Page) -> np.ndarray:
    """The pixels on the canvas, in colour and of any size, (H, W, 3)."""
    height, width, values = page.locator("#network-input").evaluate(
        """(canvas) => {
          const { height, width } = canvas;
          return [height, width, Array.from(canvas.getContext("2d").getImageData(0, 0, width, height).data)];
        }"""
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[:, :, :3]
