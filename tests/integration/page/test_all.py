"""The page under /ui, in a real browser against real servers."""

import base64
import io
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import missing
from files import encoded, npy_request, png
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Response, Route, expect, sync_playwright
from server import ROOT, Server, serve
from torchvision.transforms.v2 import functional

from benchmarks.page import VIEWS, WATCH, predictions_per_second, chromium, drag
from model import load_artifact

WEB = ROOT / "service" / "web"
CLASSES = load_artifact().classes
DRAWINGS = ("a face", "a cup", "a house", "a seven", "noise")
MAX_FIRST_VIEW_BYTES = 150_000
MIN_PREDICTIONS_PER_SECOND = 10
KEY = "Schlüssel zum Dienst"


def file_of(name: str) -> bytes:
    return (WEB / "images" / f"{re.sub('[ /]', '-', name)}.png").read_bytes()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or the one that playwright has installed."""
    with sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            missing("Chromium: Debian's package chromium, or .venv/bin/playwright install chromium")
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@contextmanager
def page_of(
    browser: Browser, url: str, *, path: str = "/ui", faults: tuple[str, ...] = (), **options
) -> Iterator[Page]:
    """An open page; whatever it complains of, other than such faults, is a failure."""
    context = browser.new_context(**(VIEWS["light"] | options))
    page = context.new_page()
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        expected = (*faults, "willReadFrequently")  # said of these tests, which read the canvas
        if message.type in {"error", "warning"} and not any(fault in message.text for fault in expected):
            complaints.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url + path)
    try:
        yield page
        assert complaints == []
        assert context.cookies() == []
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    finally:
        context.close()


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    with page_of(browser, server.url) as opened:
        settled(opened)
        yield opened


def settled(page: Page) -> None:
    """Wait until the first image is answered at all angles."""
    expect(page.locator("#label")).not_to_have_text("…")
    expect(page.locator("#rotation-figure svg")).to_be_visible()


def label(page: Page) -> str:
    return page.locator("#label").inner_text().rstrip("?").lower()


def table(page: Page) -> dict[str, tuple[str, str]]:
    """What is shown of both predictions, by class."""
    rows = page.locator("#classes tbody tr").evaluate_all(
        "all => all.map((row) => [row, ...row.querySelectorAll('.number')].map((one) => one.textContent))"
    )
    names = page.locator("#classes tbody th").all_inner_texts()
    return {name.lower(): tuple(texts[1:]) for name, texts in zip(names, rows, strict=True)}


def percent(part: float) -> str:
    if 0.9995 < part < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < part < 0.0005 else f"{100 * part:.1f} %"


def assert_shown(page: Page, whole: dict, thinned: dict) -> None:
    """Wait until both predictions are shown, every number of them."""
    ends = time.monotonic() + 5
    while True:
        try:
            assert_shown_now(page, whole, thinned)
        except AssertionError:
            if time.monotonic() > ends:
                raise
            page.wait_for_timeout(50)
        else:
            return


def assert_shown_now(page: Page, whole: dict, thinned: dict) -> None:
    expect(page.locator("#confidence")).to_have_text(percent(thinned["confidence"]))
    expect(page.locator("#eval-result")).to_have_text(f"{whole['label']}, {percent(whole['confidence'])}")
    expect(page.locator("#dropout-result")).to_have_text(f"{thinned['label']}, {percent(thinned['confidence'])}")
    assert label(page) == thinned["label"]
    assert page.locator("#label").inner_text().endswith("?") == thinned["abstain"]
    pairs = zip(whole["probabilities"], thinned["probabilities"], strict=True)
    shown = table(page)
    for name, (before, after) in zip(CLASSES, pairs, strict=True):
        # Halves are rounded another way by JavaScript.
        for text, part in zip(shown[name], (before, after), strict=True):
            assert text in {percent(part), percent(part + 1e-9), percent(part - 1e-9)}
    members = page.locator("#classes .member th").all_inner_texts()
    assert {member.lower() for member in members} == set(thinned["prediction_set"] or ())
    decision = page.locator("#decision").inner_text()
    assert {"risk": "low confidence", "novelty": "out-of-distribution", None: "Answers"}[thinned["abstain_reason"]] in decision
    spread = thinned["uncertainty"]
    values = [spread[name] for name in ("expected_entropy", "mutual_information", "predictive_entropy")]
    assert page.locator("#entropies strong").all_inner_texts() == [f"{value:.3f}" for value in values]
    dots = page.locator("#classes tbody .dots").evaluate_all(
        "all => all.map(one => one.getAttribute('d').split('M').length - 1)"
    )
    assert dots == [thinned["samples"]] * len(CLASSES)
    warnings = page.locator("#warnings li").all_inner_texts()
    assert warnings == thinned["warnings"]


def asked(client: httpx.Client, body: bytes, **params: object) -> tuple[dict, dict]:
    """Both predictions as the page asks for them."""
    voting = {"samples": 100, "seed": 0} if "method" not in params else {}
    whole = {name: params[name] for name in ("invert",) if name in params}
    answers = [client.post("/predict", content=body, params=one) for one in (whole, voting | params)]
    assert [answer.status_code for answer in answers] == [200, 200]
    return answers[0].json(), answers[1].json()


def give_file(page: Page, name: str, content: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": content})


def hand_over(page: Page, event: str, name: str, content: bytes) -> None:
    """Drop or paste a file: Chromium lets scripts make such events, not playwright's mouse or keys."""
    page.evaluate(
        """([kind, name, content]) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(atob(content), (one) => one.charCodeAt(0))], name));
          const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
          if (kind === "paste") document.body.dispatchEvent(new ClipboardEvent(kind, options));
          else for (const step of ["dragover", kind]) document.body.dispatchEvent(new DragEvent(step, options));
        }""",
        [event, name, base64.b64encode(content).decode()],
    )


def slide(page: Page, name: str, value: float) -> None:
    slider = page.locator(f"#{name}")
    slider.evaluate("(one, value) => { one.value = value; one.dispatchEvent(new Event('input')); }", str(value))


# What is served.


def test_files_have_security_headers_and_are_cacheable(client):
    for path in ("/ui", "/ui/card", "/ui/main.js", "/ui/style.css", "/ui/icon.svg", "/ui/images/coat.png"):
        response = client.get(path)
        policies = response.headers.get_list("content-security-policy")
        assert len(policies) == 1
        assert "unsafe" not in policies[0]
        assert "default-src 'none'" in policies[0]
        assert "script-src 'self';" in policies[0]
        tag = response.headers["etag"]
        assert response.headers["cache-control"] == "no-cache"
        for known in (tag, f'"other", W/{tag}', "*"):
            again = client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(path, headers={"If-None-Match": '"other"'}).content == response.content
        head = client.head(path)
        assert (head.status_code, head.content, head.headers["content-length"]) == (
            200,
            b"",
            str(len(response.content)),
        )
    assert "unsafe-inline" in client.get("/").headers["content-security-policy"]  # BentoML's page is another


def test_files_have_media_types_and_other_paths_are_404(client):
    kinds = {"/ui": "text/html", "/ui/main.js": "text/javascript", "/ui/style.css": "text/css"}
    kinds |= {"/ui/icon.svg": "image/svg+xml", "/ui/images/bag.png": "image/png"}
    kinds |= {"/ui/images/LICENSE.fashion-mnist": "text/plain", "/card.json": "application/json"}
    for path, kind in kinds.items():
        assert client.get(path).headers["content-type"].partition(";")[0] == kind
    moved = client.get("/ui/")
    assert (moved.status_code, moved.headers["location"]) == (308, "../ui")
    for path in ("/ui/nothing", "/ui/../service.py", "/ui/%2e%2e/service.py", "/ui/web", "/ui/index.html", "/uii"):
        assert client.get(path).status_code == 404
    assert client.post("/ui").status_code == 405


def test_files_have_no_inline_code_and_no_external_resources():
    for path in WEB.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*src=)", text), path
        assert not re.search(r'(?:src|href)="(?:https?:)?//(?!d2l\.ai|arxiv\.org)', text), path
    for path in (*WEB.rglob("*.js"), *WEB.rglob("*.css")):
        text = re.sub(r"//www\.w3\.org/2000/svg", "", path.read_text())
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|eval\(|document\.write|Storage|cookie", text), (
            path
        )


def test_card_json_is_the_model_card_without_calibration_tables(client):
    card = load_artifact().card
    assert client.get("/card.json").json() == {name: value for name, value in card.items() if name != "calibrations"}
    assert len(client.get("/card.json").content) < 10_000


def test_gallery_has_the_first_test_image_of_each_class(fashion):
    labels = fashion.test.labels_B.tolist()
    for place, name in enumerate(CLASSES):
        pixels = np.asarray(Image.open(io.BytesIO(file_of(name))))
        assert np.array_equal(pixels, fashion.test.images_B[labels.index(place)].numpy()), name
    license_text = (ROOT / "docs" / "images" / "LICENSE.fashion-mnist").read_text()
    assert (WEB / "images" / "LICENSE.fashion-mnist").read_text().endswith(license_text.partition("The MIT")[2])


def test_predictions_return_pixels_on_request(client):
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 120, (28, 28), dtype=np.uint8)
    for path, found in (("/predict", lambda body: body), ("/predict_batch", lambda body: body["results"][0])):
        answer = client.post(path, content=png(pixels), params={"return_pixels": True}).json()
        assert found(answer)["preprocessing"]["pixels"] == pixels.tolist()
        assert "pixels" not in found(client.post(path, content=png(pixels)).json())["preprocessing"]
    inverted = client.post("/predict", content=png(pixels), params={"return_pixels": True, "invert": "yes"}).json()
    assert inverted["preprocessing"]["pixels"] == (255 - pixels).tolist()
    photograph = encoded(Image.fromarray(rng.integers(0, 256, (90, 60, 3), dtype=np.uint8)), "JPEG")
    seen = client.post("/predict", content=photograph, params={"return_pixels": True}).json()
    again = client.post("/predict", json={"image": seen["preprocessing"]["pixels"], "invert": "no"}).json()
    assert again["probabilities"] == seen["probabilities"]
    assert again["preprocessing"]["image_hash"] == seen["preprocessing"]["image_hash"]


# The first view.


def test_first_view_is_small_and_loads_from_the_service_only(browser, server):
    context = browser.new_context(**VIEWS["light"])
    page = context.new_page()
    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response))  # noqa: PLW0108 - playwright marks its listeners
    page.goto(f"{server.url}/ui")
    settled(page)
    files = [one for one in responses if one.request.method == "GET" and "/images/" not in one.url]
    assert {one.url.startswith(server.url + "/") for one in responses} == {True}
    assert {one.status for one in responses} == {200}
    total = sum(sum(one.request.sizes()[part] for part in ("responseBodySize", "responseHeadersSize")) for one in files)
    assert len(files) > 10
    assert total < MAX_FIRST_VIEW_BYTES
    assert label(page) == "ankle boot"
    responses.clear()
    page.reload()
    settled(page)
    scripts = [one for one in responses if one.url.endswith((".js", ".css"))]
    assert {one.request.sizes()["responseBodySize"] for one in scripts} == {0}  # kept, and asked after
    context.close()


def test_api_page_links_to_the_page(browser, server):
    context = browser.new_context(**VIEWS["light"])
    page = context.new_page()
    page.goto(f"{server.url}/")
    with context.expect_page() as opened:
        page.get_by_role("link", name="See it in the browser").click()
    settled(opened.value)
    assert opened.value.url == f"{server.url}/ui"
    context.close()


def test_card_page_shows_the_model_card(browser, server):
    with page_of(browser, server.url, path="/ui/card") as page:
        metrics = load_artifact().card["metrics"]["test"]
        expect(page.locator("#facts")).to_contain_text(load_artifact().sha256)
        row = page.locator("#accuracy tr", has=page.get_by_role("rowheader", name="100 masks", exact=True))
        assert row.locator("td").all_inner_texts() == [
            f"{100 * metrics['mc']['accuracy']:.1f} %", f"{metrics['mc']['nll']:.4f}", f"{metrics['mc']['ece']:.4f}",
        ]  # fmt: skip
        assert page.locator("#coverage tbody tr").count() == 4
        assert page.locator("#abstention tbody tr").count() == 3
        page.get_by_role("link", name="Try it").click()
        settled(page)


# Every way of giving an image.


def test_gallery_images_show_the_predictions_of_the_api(page, client):
    for name in reversed(CLASSES):
        page.get_by_role("radio", name=name, exact=True).check()
        assert_shown(page, *asked(client, file_of(name)))
        expect(page.locator("#preprocessing")).to_have_text(
            f"{name[0].upper()}{name[1:]}. PNG, 28 × 28 pixels: used unchanged, not inverted."
        )


def test_out_of_distribution_drawings_are_sent_and_inverted(page):
    for name in DRAWINGS:
        with page.expect_response(lambda one: "return_pixels" in one.url and one.ok) as answered:
            page.get_by_role("radio", name=name, exact=True).check()
        thinned = answered.value.json()
        told = thinned["preprocessing"]
        assert (told["source"], told["width"], told["height"]) == ("PNG", 112, 112)
        if name != "noise":
            assert told["inverted"]
            expect(page.locator("#preprocessing")).to_contain_text("inverted (dark became light)")
        expect(page.locator("#original")).to_be_visible()
        expect(page.locator("#confidence")).to_have_text(percent(thinned["confidence"]))
        assert seen_pixels(page) == told["pixels"]
    assert page.locator("#decision").inner_text().startswith("Abstains")  # noise


def seen_pixels(page: Page) -> list[list[int]]:
    """What the canvas shows."""
    return page.locator("#network-input").evaluate(
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, 28, 28);
          return [...Array(28).keys()].map((y) => [...Array(28).keys()].map((x) => data[4 * (28 * y + x)]));
        }"""
    )


@pytest.mark.parametrize("way", ["file", "drop", "paste"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_is_chosen_dropped_or_pasted(page, client, way, kind):
    paper = Image.new("RGB", (200, 260), "white")
    paper.paste(Image.open(io.BytesIO(file_of("sandal"))).resize((160, 160)).point(lambda value: 255 - value), (20, 50))
    photograph = encoded(paper, kind)
    if way == "file":
        give_file(page, "my sandal", photograph)
    else:
        hand_over(page, way, "my sandal", photograph)
        expect(page.get_by_role("alert")).to_be_hidden()
    whole, thinned = asked(client, photograph)
    assert_shown(page, whole, thinned)
    expect(page.locator("#preprocessing")).to_contain_text(f"My sandal. {kind}, 200 × 260 pixels")
    expect(page.locator("#network-input")).to_have_attribute("aria-label", "my sandal: 28 by 28 pixels")
    expect(page.locator("#drop-area")).to_be_hidden()
    assert page.locator("input[name=image]:checked").count() == 0
    expected = client.post("/predict", content=photograph, params={"return_pixels": True}).json()
    assert seen_pixels(page) == expected["preprocessing"]["pixels"]


def test_a_drop_without_a_file_shows_a_problem(page):
    page.evaluate(
        "document.body.dispatchEvent(new DragEvent('drop', { bubbles: true, dataTransfer: new DataTransfer() }))"
    )
    expect(page.get_by_role("alert")).to_contain_text("The dropped content contains no file")
    assert label(page) == "ankle boot"


def test_the_button_opens_the_file_chooser(page, client):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": file_of("dress")})
    assert_shown(page, *asked(client, file_of("dress")))


def test_an_image_is_drawn_by_pointer(page, client):
    page.get_by_role("radio", name="a cup").check()
    expect(page.locator("#original")).to_be_visible()
    slide(page, "rotation", 45)
    draw = page.get_by_role("button", name="Draw")
    draw.click()
    expect(draw).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#original")).to_be_hidden()
    expect(page.locator("#preprocessing")).to_have_text("Your drawing. Used as drawn.")
    assert page.locator("#rotation").input_value() == "0"
    expect(page.locator("#warnings")).to_contain_text("the image is blank")
    box = page.locator("#network-input").bounding_box()
    for x in (0.35, 0.62):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.1 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.9 * box["height"], steps=8)
        page.mouse.up()
    drawn = np.array(seen_pixels(page))
    assert drawn[14, 9:11].max() == 255
    assert drawn[14, 0:6].max() == drawn[14, 13] == 0
    assert_shown(page, *asked(client, png(drawn.astype(np.uint8)), invert="no"))
    page.get_by_label("Eraser").check()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"], steps=8)
    page.mouse.up()
    assert np.array(seen_pixels(page))[14, 3:25].max() < drawn[14].max()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#warnings")).to_contain_text("the image is blank")
    assert np.array(seen_pixels(page)).max() == 0
    draw.click()
    expect(page.locator("#tools")).to_be_hidden()


def test_an_image_is_drawn_by_keyboard(page, client):
    draw = page.get_by_role("button", name="Draw")
    draw.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#network-input")).to_be_focused()
    expect(page.locator("#cursor")).to_be_visible()
    for _ in range(6):
        page.keyboard.press("ArrowUp")
    for _ in range(12):
        page.keyboard.press("Space")
        page.keyboard.press("ArrowDown")
    drawn = np.array(seen_pixels(page))
    assert drawn[10:18, 14].min() == 255
    assert drawn[:6].max() == 0
    assert_shown(page, *asked(client, png(drawn.astype(np.uint8)), invert="no"))


# Every control.


def test_settings_become_request_parameters(page, client):
    page.get_by_role("radio", name="shirt", exact=True).check()
    body = file_of("shirt")
    given: dict[str, object] = {}

    def assert_after(act: Callable[[], object], **changes: object) -> None:
        act()
        given.update(changes)
        assert_shown(page, *asked(client, body, **given))

    assert_after(lambda: page.locator("#samples").fill("7"), samples=7)
    expect(page.locator("#sentence")).to_contain_text("7 masks")
    assert_after(lambda: page.locator("#samples").fill("1000"), samples=1000)
    assert_after(lambda: slide(page, "samples-range", 0), samples=2)
    expect(page.locator("#samples")).to_have_value("2")
    assert_after(lambda: slide(page, "samples-range", 63), samples=100)
    assert_after(lambda: page.locator("#seed").fill(str(2**63 - 1)), seed=2**63 - 1)
    page.get_by_role("button", name="New seed").click()
    assert_after(lambda: None, seed=page.locator("#seed").input_value())
    assert page.locator("#seed").input_value() != str(2**63 - 1)
    page.get_by_text("Decision settings").click()
    assert_after(lambda: page.locator("#coverage").select_option("0.99"), coverage="0.99")
    expect(page.locator("#numbers")).to_contain_text("the true class of 99 % of all images")
    assert_after(lambda: page.locator("#max_risk").select_option("0.01"), max_risk="0.01")
    assert_after(lambda: page.locator("#false_alarm_rate").select_option("0.05"), false_alarm_rate="0.05")
    assert_after(lambda: page.locator("#invert").select_option("yes"), invert="yes")
    expect(page.locator("#preprocessing")).to_contain_text("inverted")
    assert seen_pixels(page) == (255 - np.asarray(Image.open(io.BytesIO(body)))).tolist()
    given.pop("samples")
    given.pop("seed")
    assert_after(lambda: page.get_by_label("all masks (moment propagation)").check(), method="moments")
    expect(page.locator("#samples")).to_be_disabled()
    assert len(page.locator("#classes .spread").evaluate_all("all => all.filter((one) => one.getAttribute('d'))")) == 10
    page.get_by_label("sampled masks").check()
    expect(page.locator("#samples")).to_be_enabled()


def test_changes_are_predicted_and_can_be_reset(page, client):
    page.get_by_role("radio", name="pullover", exact=True).check()
    original = np.asarray(Image.open(io.BytesIO(file_of("pullover"))))
    assert_shown(page, *asked(client, file_of("pullover")))
    for name, value in {"rotation": 77, "noise": 30, "blur": 1.5, "contrast": 40, "occlusion": 12}.items():
        slide(page, name, value)
        seen = np.array(seen_pixels(page), dtype=np.uint8)
        assert not np.array_equal(seen, original)
        assert_shown(page, *asked(client, png(seen), invert="no"))
        assert page.locator(f"#{name}").get_attribute("aria-valuetext").startswith(str(value))
        page.get_by_role("button", name="Reset the changes").click()
        assert seen_pixels(page) == original.tolist()
        assert_shown(page, *asked(client, file_of("pullover")))
    for name, value in {"rotation": 20, "noise": 10, "blur": 0.5}.items():  # together
        slide(page, name, value)
    assert_shown(page, *asked(client, png(np.array(seen_pixels(page), dtype=np.uint8)), invert="no"))
    page.get_by_role("radio", name="coat", exact=True).check()  # another image is not changed
    assert_shown(page, *asked(client, file_of("coat")))
    assert page.locator("#rotation").input_value() == "0"


def in_page(page: Page, call: str, pixels: np.ndarray) -> np.ndarray:
    """What a function of image-changes.js makes of an image."""
    values = page.evaluate(
        f"async (pixels) => {{ const all = await import('/ui/image-changes.js'); return Array.from(all.{call}); }}",
        pixels.ravel().tolist(),
    )
    return np.array(values).reshape(28, 28)


def test_changes_equal_a_second_implementation(page):
    for name in ("ankle boot", "coat"):
        pixels = np.asarray(Image.open(io.BytesIO(file_of(name))))
        tensor = torch.from_numpy(pixels.astype(np.float32))[None]
        bilinear = functional.InterpolationMode.BILINEAR
        for degrees in (1, 30, 90, 135, 222.5, 360):
            turned = functional.rotate(tensor, degrees, interpolation=bilinear)[0].numpy()
            assert np.abs(in_page(page, f"rotate(pixels, {degrees})", pixels) - turned).max() < 0.1
        for deviation in (0.5, 1.5, 3):
            side = 2 * int(np.ceil(3 * deviation)) + 1
            blurred = functional.gaussian_blur(tensor, [side, side], [deviation, deviation])[0].numpy()
            assert np.abs(in_page(page, f"gaussianBlur(pixels, {deviation})", pixels) - blurred).max() < 0.1
        for factor in (0.1, 0.5, 2):
            expected = pixels.mean() + factor * (pixels - pixels.mean())
            assert np.abs(in_page(page, f"adjustContrast(pixels, {factor})", pixels) - expected).max() < 1e-9
        for side in (1, 6, 28):
            covered = in_page(page, f"coverCentre(pixels, {side})", pixels)
            first = (28 - side) // 2
            assert covered[first : first + side, first : first + side].max() == 0
            assert (covered == pixels).sum() >= 784 - side * side
    grey = np.full((28, 28), 128)
    unchanged = "{ rotation: 0, noise: 0, blur: 0, contrast: 100, occlusion: 0"
    noisy = in_page(page, f"applyChanges(pixels, {unchanged}, noise: 10 }})", grey)
    assert noisy.mean() == pytest.approx(128, abs=4 * 25.5 / 28)
    assert noisy.std() == pytest.approx(25.5, rel=0.1)
    assert np.array_equal(in_page(page, f"applyChanges(pixels, {unchanged} }})", pixels), pixels)


def test_rotation_figure_shows_the_means_of_one_batch(page, client):
    with page.expect_response("**/predict_batch*") as answered:
        page.get_by_role("radio", name="sneaker", exact=True).check()
    asked_for = json.loads(answered.value.request.post_data)
    results = answered.value.json()["results"]
    assert (len(asked_for["images"]), len(results)) == (36, 36)
    assert "samples=100" in answered.value.url
    original = np.asarray(Image.open(io.BytesIO(file_of("sneaker"))))
    assert asked_for["images"][0] == original.tolist()
    turned = functional.rotate(torch.from_numpy(original.copy())[None].float(), 90.0)[0].numpy()
    assert np.abs(np.array(asked_for["images"][9]) - turned).max() <= 1
    page.get_by_text("Table of the means").click()
    expect(page.locator("#rotation-table tbody tr")).to_have_count(37)
    names = [head.lower() for head in page.locator("#rotation-table thead th").all_inner_texts()[1:]]
    means_TC = np.array([result["sample_probabilities"] for result in results]).mean(axis=1)
    for turn in (0, 5, 36):
        cells = page.locator("#rotation-table tbody tr").nth(turn).locator("td").all_inner_texts()
        for name, cell in zip(names, cells, strict=True):
            mean = means_TC[turn % 36, CLASSES.index(name)]
            assert cell in {percent(mean), percent(mean + 1e-9), percent(mean - 1e-9)}
    assert page.locator("#rotation-figure path.dots").count() == len(names) >= 2
    first = page.locator("#rotation-figure path.dots").first.get_attribute("d")
    assert first.count("M") == 3700
    box = page.locator("#rotation-figure svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    angle = int(page.locator("#rotation").input_value())
    assert 160 < angle < 180
    expect(page.locator("#prediction")).to_have_attribute("data-rotation", str(angle))
    assert "sneaker" in page.locator("#rotation-summary").inner_text()


# Dragging.


def test_dragging_shows_ten_predictions_a_second_in_order(page):
    rates = []
    while len(rates) < 3 and max(rates, default=0) < MIN_PREDICTIONS_PER_SECOND:  # what else the machine does, slows it
        page.get_by_role("button", name="Reset the changes").click()
        expect(page.locator("#prediction")).to_have_attribute("data-rotation", "0")
        page.evaluate(WATCH)
        drag(page)
        end = page.locator("#rotation").input_value()
        expect(page.locator("#prediction")).to_have_attribute("data-rotation", end)
        angles = [angle for _, angle in page.evaluate("window.shown")]
        assert angles == sorted(angles)
        assert angles[-1] == float(end) > 350
        rates.append(predictions_per_second(page))
    assert max(rates) >= MIN_PREDICTIONS_PER_SECOND


# Answers come late by between 0 and 300 milliseconds.
HOLD = """() => {
  const { fetch } = window;
  let state = 1;
  window.fetch = async (...request) => {
    const response = await fetch(...request);
    state = (state * 48271) % 2147483647;
    await new Promise((go) => setTimeout(go, (300 * state) / 2147483647));
    return response;
  };
}"""


def test_an_older_response_never_replaces_a_newer_one(page, client):
    page.evaluate(HOLD)
    page.evaluate(WATCH)
    drag(page)
    expect(page.locator("#prediction")).to_have_attribute("data-rotation", page.locator("#rotation").input_value())
    angles = [angle for _, angle in page.evaluate("window.shown")]
    assert angles == sorted(angles)
    assert len(angles) >= 3
    for name in ("trouser", "bag", "noise", "dress", "sandal"):  # faster than they are loaded, and answered
        page.get_by_role("radio", name=name, exact=True).check()
        page.wait_for_timeout(50)
    page.wait_for_timeout(1500)
    assert_shown(page, *asked(client, file_of("sandal")))
    expect(page.locator("#network-input")).to_have_attribute("aria-label", "sandal: 28 by 28 pixels")


# Where there is no answer.


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"no image", "Unsupported image format: the image must be a PNG, JPEG or WEBP file"),
        ("cut.png", file_of("shirt")[:300], "Invalid image: the image is broken"),
        ("huge.png", encoded(Image.new("1", (6000, 5000))), "more than 25000000"),
        ("heavy.png", bytes(11 * 2**20), "Body too large: the body must have at most 10485760 bytes"),
        ("empty.png", b"", "image is missing"),
    ],
    ids=["415", "422", "413 pixels", "413 bytes", "empty"],
)  # fmt: skip
def test_a_refused_file_shows_the_problem_and_keeps_the_image(
    browser, server, client, name, content, words
):
    with page_of(browser, server.url, faults=("status of 4",)) as page:
        settled(page)
        give_file(page, name, content)
        problem = page.get_by_role("alert")
        expect(problem).to_contain_text(words)
        expect(problem).to_contain_text(f"{name}: ")
        assert_shown(page, *asked(client, file_of("ankle boot")))
        slide(page, "rotation", 15)
        expect(problem).to_be_hidden()
        expect(page.locator("#prediction")).to_have_attribute("data-rotation", "15")


def test_an_invalid_parameter_shows_the_problem(browser, server, client):
    with page_of(browser, server.url, faults=("status of 422",)) as page:
        settled(page)
        page.locator("#samples").fill("1")
        expect(page.get_by_role("alert")).to_contain_text(
            "samples must be 0, 2..1000 or auto, got 1: one mask has no spread"
        )
        page.locator("#samples").fill("30")
        expect(page.get_by_role("alert")).to_be_hidden()
        page.locator("#seed").fill("x")
        expect(page.get_by_role("alert")).to_contain_text("seed must be a whole number, got x")
        page.locator("#seed").fill("3")
        assert_shown(page, *asked(client, file_of("ankle boot"), samples=30, seed=3))


@pytest.mark.parametrize("status", [429, 503])
def test_retries_after_the_requested_time(browser, server, client, status):
    """As a proxy with a limit of its own says it, once for every request."""
    with page_of(browser, server.url, faults=(f"status of {status}",)) as page:
        settled(page)
        times: list[float] = []

        def refuse(route: Route) -> None:
            times.append(time.monotonic())
            if len(times) == 1:
                told = {"title": "Slow down", "detail": "too many for now", "status": status}
                route.fulfill(status=status, headers={"Retry-After": "2"}, body=json.dumps(told))
            else:
                route.continue_()

        page.route(re.compile(r"/predict\?.*return_pixels"), refuse)
        page.get_by_role("radio", name="bag", exact=True).check()
        expect(page.locator("#status")).to_have_text("The service is busy: too many for now. Retrying in 2 s.")
        assert_shown(page, *asked(client, file_of("bag")))
        expect(page.locator("#status")).to_be_hidden()
        assert 1.95 < times[1] - times[0] < 4


def test_the_figure_waits_for_an_overloaded_service(browser, tmp_path):
    """One batch may be in work: while it is another's, the figure waits, and comes after all."""
    many = npy_request(np.zeros((1000, 28, 28), np.uint8)) | {"params": {"samples": 100}, "timeout": 60}
    with (
        serve(tmp_path / "home", MCD_MAX_BATCHES_IN_FLIGHT="1") as busy,
        ThreadPoolExecutor(1) as pool,
        page_of(browser, busy.url, faults=("status of 503",)) as page,
    ):
        settled(page)
        refused: list[Response] = []
        page.on("response", lambda one: refused.append(one) if one.status == 503 else None)
        ends = time.monotonic() + 20
        for name in itertools.cycle(("bag", "coat", "dress")):
            other = pool.submit(httpx.post, f"{busy.url}/predict_batch", **many)
            page.get_by_role("radio", name=name, exact=True).check()
            page.wait_for_timeout(800)
            assert other.result().status_code in {200, 503}
            if refused:
                break
            assert time.monotonic() < ends
        assert refused[0].headers["retry-after"] == "1"
        expect(page.locator("#rotation-summary")).to_contain_text(f"Upright, the prediction is {name}")
        expect(page.locator("#status")).to_be_hidden()


def test_an_unreachable_service_is_retried(browser, server, client):
    with page_of(browser, server.url, faults=("ERR_INTERNET_DISCONNECTED",)) as page:
        settled(page)
        page.context.set_offline(True)
        slide(page, "rotation", 40)
        expect(page.locator("#status")).to_have_text("The service cannot be reached. Retrying in 2 s.")
        slide(page, "rotation", 50)
        page.context.set_offline(False)
        expect(page.locator("#prediction")).to_have_attribute("data-rotation", "50")
        expect(page.locator("#status")).to_be_hidden()


def test_a_large_file_is_not_sent_again_after_a_reset(browser, server, client):
    """As a proxy with a smaller limit does it: the browser learns no more than that the connection has ended."""
    with page_of(browser, server.url, faults=("ERR_CONNECTION_RESET",)) as page:
        settled(page)
        page.route("**/predict?*", lambda route: route.abort("connectionreset"))
        give_file(page, "large.png", bytes(3 * 2**20))
        expect(page.get_by_role("alert")).to_contain_text("large.png: Upload failed: the service closed the connection before all 3 MiB")
        page.unroute("**/predict?*")
        assert_shown(page, *asked(client, file_of("ankle boot")))


@pytest.fixture(scope="module")
def keyed(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keyed")
    with serve(folder / "home", MCD_WORKERS="2", MCD_API_KEYS=KEY) as running:
        yield running


def test_the_api_key_is_requested_and_kept_in_memory_only(browser, keyed):
    with page_of(browser, keyed.url, faults=("status of 401",)) as page:
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
        settled(page)
        assert label(page) == "bag"
        expect(page.locator("#status")).to_be_hidden()
        assert KEY not in page.content()
        assert page.url == f"{keyed.url}/ui"
        page.reload()
        expect(dialog).to_be_visible()
    assert KEY not in keyed.log.read_text()


# For everybody.


def violations(page: Page) -> list[tuple[str, list[str]]]:
    found = Axe().run(page).response["violations"]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_no_violation(browser, server, view):
    with page_of(browser, server.url, faults=("status of 4",), **VIEWS[view]) as page:
        settled(page)
        assert violations(page) == []
        page.get_by_text("Decision settings").click()
        page.get_by_text("Table of the means").click()
        page.get_by_role("radio", name="a seven", exact=True).check()
        slide(page, "rotation", 33)
        page.get_by_label("all masks (moment propagation)").check()
        expect(page.locator("#dropout-title")).to_have_text("Mean over all masks")
        assert violations(page) == []
        page.get_by_role("button", name="Draw").click()
        expect(page.locator("#warnings li")).not_to_have_count(0)
        assert violations(page) == []
        give_file(page, "notes.txt", b"no image")
        expect(page.get_by_role("alert")).to_be_visible()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(f"{server.url}/ui/card")
        expect(page.locator("#facts")).to_contain_text("sha256")
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_everything_can_be_used_by_keyboard(page, client):
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the prediction")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prediction")).to_be_focused()
    page.get_by_role("radio", name="ankle boot", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert_shown(page, *asked(client, file_of("pullover")))
    page.locator("body").evaluate("() => document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.textContent"
            )
        )
    wanted = {"image", "choose-file", "draw", "rotation", "noise", "blur", "contrast", "occlusion", "reset", "samples-range"}
    assert wanted | {"samples", "seed", "new-seed", "method", "Decision settings", "Model card"} <= reached
    page.locator("#rotation").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#prediction")).to_have_attribute("data-rotation", "1")


def test_the_prediction_is_announced_once_after_changes(page):
    spoken: Locator = page.locator("#announcement")
    expect(spoken).to_contain_text("Ankle boot 99.7 %. Answers. All 100 masks predict ankle boot.")
    page.evaluate(
        """() => {
          window.said = 0;
          const count = new MutationObserver(() => { window.said += 1; });
          count.observe(document.getElementById("announcement"), { childList: true });
        }"""
    )
    for angle in range(10, 100, 10):
        slide(page, "rotation", angle)
        page.wait_for_timeout(60)
    page.wait_for_timeout(1500)
    assert page.evaluate("window.said") == 1
