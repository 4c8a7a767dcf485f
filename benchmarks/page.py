"""Screenshots and speed of the page under /ui in Chromium.

The pictures go to docs/images. `make pictures` runs it.
"""

import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, Response, sync_playwright

from benchmarks.servers import ROOT, SERVICE, run_server

VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 1000}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 1000}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}},
}
# Records when a prediction is shown, and of which angle.
WATCH = """() => {
  window.watch?.disconnect();
  window.shown = [];
  const prediction = document.getElementById("prediction");
  const note = () => window.shown.push([performance.now(), Number(prediction.dataset.rotation)]);
  window.watch = new MutationObserver(note);
  window.watch.observe(prediction, { attributeFilter: ["data-rotation"] });
}"""

_IMAGES = ROOT / "docs" / "images"
_ANGLE = 24  # at which the masks disagree about the boot
_MARGIN = 24  # pixels
_MAX_BYTES = 200_000
_STEPS = 200


def main() -> None:
    """Take pictures, and measure."""
    with run_server(SERVICE, MCD_WORKERS="2") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(playwright))
        url = f"http://127.0.0.1:{server.port}/ui"
        for name, view in VIEWS.items():
            _take_pictures(browser, url, name, view)
        print(f"first view: {_first_view(browser, url) / 1000:.1f} kB besides images")
        rates = sorted(_predictions_per_second(browser, url) for _ in range(5))
        print(f"dragging: {rates[0]:.0f} to {rates[-1]:.0f} predictions a second, two workers")
        browser.close()


def chromium(playwright: Playwright) -> str | None:
    """Find Chromium: Debian's, or the one installed by playwright.

    The headless shell comes first: it draws frames without a window, as Playwright's own default does.
    """
    installed = (shutil.which(command) for command in ("chromium-headless-shell", "chromium"))
    found = next(filter(None, installed), playwright.chromium.executable_path)
    return found if Path(found).exists() else None


def drag(page: Page) -> None:
    """Drag the rotation from its start to its end, as fast as the browser takes it."""
    slider = page.locator("#rotation")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8, height)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 4, height, steps=_STEPS)
    page.mouse.up()


def predictions_per_second(page: Page) -> float:
    """Rate of the predictions that `WATCH` has recorded."""
    shown = page.evaluate("window.shown")
    return 1000 * (len(shown) - 1) / float(shown[-1][0] - shown[0][0])


def _open(browser: Browser, url: str, view: dict[str, Any], **options: Any) -> Page:
    page = browser.new_page(**view, **options)
    page.goto(url)
    page.locator("#rotation-figure svg").wait_for()
    return page


def _take_pictures(browser: Browser, url: str, name: str, view: dict[str, Any]) -> None:
    page = _open(browser, url, view)
    page.locator("#rotation").evaluate(
        "(slider, angle) => { slider.value = angle; slider.dispatchEvent(new Event('input')); }", str(_ANGLE)
    )
    page.locator(f"#prediction[data-rotation='{_ANGLE}']").wait_for()
    page.wait_for_timeout(500)
    if name == "narrow":
        page.locator(".input").evaluate("(one) => scrollTo(0, one.getBoundingClientRect().top + scrollY - 16)")
    _save(page.screenshot(), f"page-{name}.png")
    if name == "light":
        box = page.locator(".rotation").bounding_box()
        assert box is not None
        clip = {"x": box["x"] - _MARGIN, "y": box["y"] - _MARGIN}
        clip |= {"width": box["width"] + 2 * _MARGIN, "height": box["height"] + 2 * _MARGIN}
        _save(page.screenshot(clip=clip, full_page=True), "page-rotation.png")
    page.close()


def _save(picture: bytes, name: str) -> None:
    """Write it, with fewer colours if that is needed to keep it small."""
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").save(_IMAGES / name, optimize=True)
        if (_IMAGES / name).stat().st_size > _MAX_BYTES:
            few = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            few.save(_IMAGES / name, optimize=True)


def _first_view(browser: Browser, url: str) -> int:
    """Bytes on the wire of all that a first visit loads, except images and responses of the API."""
    responses: list[Response] = []
    page = browser.new_page(**VIEWS["light"])
    page.on("response", lambda response: responses.append(response))  # noqa: PLW0108 - playwright marks its listeners
    page.goto(url)
    page.locator("#rotation-figure svg").wait_for()
    total = 0
    for one in responses:
        if one.request.method == "GET" and "/examples/" not in one.url:
            sizes = one.request.sizes()
            total += sizes["responseBodySize"] + sizes["responseHeadersSize"]
    page.close()
    return total


def _predictions_per_second(browser: Browser, url: str) -> float:
    page = _open(browser, url, VIEWS["light"])
    page.evaluate(WATCH)
    drag(page)
    page.wait_for_timeout(500)
    rate = predictions_per_second(page)
    page.close()
    return rate


if __name__ == "__main__":
    main()
