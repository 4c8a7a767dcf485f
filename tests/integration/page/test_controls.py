"""Every setting, and every change of the image."""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from files import png
from PIL import Image
from playwright.sync_api import Page, expect
from ui_page import assert_shows, gallery_file, move_slider, predict_both, shown_pixels

from training.vision import functional


def test_settings_become_request_parameters(page, client):
    page.get_by_role("radio", name="shirt", exact=True).check()
    body = gallery_file("shirt")
    given: dict[str, object] = {}

    def assert_after(act: Callable[[], object], **changes: object) -> None:
        act()
        given.update(changes)
        assert_shows(page, *predict_both(client, body, **given))

    assert_after(lambda: page.locator("#samples").fill("7"), samples=7)
    expect(page.locator("#sentence")).to_contain_text("7 masks")
    assert_after(lambda: page.locator("#samples").fill("1000"), samples=1000)
    assert_after(lambda: move_slider(page, "samples-range", 0), samples=2)
    expect(page.locator("#samples")).to_have_value("2")
    assert_after(lambda: move_slider(page, "samples-range", 63), samples=100)
    assert_after(lambda: page.locator("#seed").fill(str(2**63 - 1)), seed=2**63 - 1)
    page.get_by_role("button", name="New seed").click()
    assert_after(lambda: None, seed=page.locator("#seed").input_value())
    assert page.locator("#seed").input_value() != str(2**63 - 1)
    page.get_by_text("Decision settings").click()
    assert_after(lambda: page.locator("#coverage").select_option("0.99"), coverage="0.99")
    expect(page.locator("#numbers")).to_contain_text("the true class of 99 % of all images")
    for method in ("mondrian", "lac"):
        assert_after(partial(page.locator("#set_method").select_option, method), set_method=method)
    assert_after(lambda: page.locator("#max_risk").select_option("0.01"), max_risk="0.01")
    assert_after(lambda: page.locator("#false_alarm_rate").select_option("0.05"), false_alarm_rate="0.05")
    assert_after(lambda: page.locator("#invert").select_option("yes"), invert="yes")
    expect(page.locator("#preprocessing")).to_contain_text("inverted")
    assert shown_pixels(page) == (255 - np.asarray(Image.open(io.BytesIO(body)))).tolist()
    given.pop("samples")
    given.pop("seed")
    assert_after(lambda: page.get_by_label("all masks (moment propagation)").check(), method="moments")
    expect(page.locator("#samples")).to_be_disabled()
    assert len(page.locator("#classes .spread").evaluate_all("all => all.filter((one) => one.getAttribute('d'))")) == 10
    page.get_by_label("sampled masks").check()
    expect(page.locator("#samples")).to_be_enabled()


def test_changes_are_predicted_and_can_be_reset(page, client):
    page.get_by_role("radio", name="pullover", exact=True).check()
    original = np.asarray(Image.open(io.BytesIO(gallery_file("pullover"))))
    assert_shows(page, *predict_both(client, gallery_file("pullover")))
    for name, value in {"rotation": 77, "noise": 30, "blur": 1.5, "contrast": 40, "occlusion": 12}.items():
        move_slider(page, name, value)
        seen = np.array(shown_pixels(page), dtype=np.uint8)
        assert not np.array_equal(seen, original)
        assert_shows(page, *predict_both(client, png(seen), invert="no"))
        assert page.locator(f"#{name}").get_attribute("aria-valuetext").startswith(str(value))
        page.get_by_role("button", name="Reset the changes").click()
        assert shown_pixels(page) == original.tolist()
        assert_shows(page, *predict_both(client, gallery_file("pullover")))
    for name, value in {"rotation": 20, "noise": 10, "blur": 0.5}.items():  # together
        move_slider(page, name, value)
    assert_shows(page, *predict_both(client, png(np.array(shown_pixels(page), dtype=np.uint8)), invert="no"))
    page.get_by_role("radio", name="coat", exact=True).check()  # another image is not changed
    assert_shows(page, *predict_both(client, gallery_file("coat")))
    assert page.locator("#rotation").input_value() == "0"


def call_in_page(page: Page, call: str, pixels: np.ndarray) -> np.ndarray:
    """What a function of image-changes.js makes of an image, (H, W) or (H, W, 3)."""
    height, width, channels = (*pixels.shape, 1)[:3]
    values = page.evaluate(
        "async ([pixels, shape]) => { const all = await import('/ui/image-changes.js'); "
        f"return Array.from(all.{call}); }}",
        [pixels.ravel().tolist(), {"channels": channels, "height": height, "width": width}],
    )
    return np.array(values).reshape(pixels.shape)


PICTURES = {
    "ankle boot": np.asarray(Image.open(io.BytesIO(gallery_file("ankle boot")))),
    "coat": np.asarray(Image.open(io.BytesIO(gallery_file("coat")))),
    "in colour, wide": np.random.default_rng(7).integers(0, 256, (20, 31, 3), np.uint8),
    "high": np.random.default_rng(8).integers(0, 256, (37, 20), np.uint8),
}


@pytest.mark.parametrize("name", PICTURES)
def test_changes_equal_a_second_implementation(shared_page, name):
    pixels = PICTURES[name]

    def assert_makes(call: str, expected: np.ndarray, tolerance: float = 0.1) -> None:
        assert np.abs(call_in_page(shared_page, call, pixels) - expected).max() < tolerance, call

    height, width = pixels.shape[:2]
    tensor = torch.from_numpy(pixels.reshape(height, width, -1).astype(np.float32)).permute(2, 0, 1)

    def as_pixels(changed: torch.Tensor) -> np.ndarray:
        return changed.permute(1, 2, 0).numpy().reshape(pixels.shape)

    bilinear = functional.InterpolationMode.BILINEAR
    for degrees in (1, 30, 90, 135, 222.5, 360):
        turned = functional.rotate(tensor, degrees, interpolation=bilinear)
        assert_makes(f"rotate(pixels, shape, {degrees})", as_pixels(turned))
    for deviation in (0.5, 1.5, 3):
        side = 2 * int(np.ceil(3 * deviation)) + 1
        blurred = functional.gaussian_blur(tensor, [side, side], [deviation, deviation])
        assert_makes(f"gaussianBlur(pixels, shape, {deviation})", as_pixels(blurred))
    for factor in (0.1, 0.5, 2):
        expected = pixels.mean() + factor * (pixels - pixels.mean())
        assert_makes(f"adjustContrast(pixels, {factor})", expected, 1e-9)
    for side in (1, 6, 20):
        top, left = (height - side) // 2, (width - side) // 2
        expected = pixels.copy()
        expected[top : top + side, left : left + side] = 0
        assert_makes(f"coverCentre(pixels, shape, {side})", expected, 1e-9)
    assert_makes(f"applyChanges(pixels, shape, {UNCHANGED} }})", pixels, 1e-9)


UNCHANGED = "{ rotation: 0, noise: 0, blur: 0, contrast: 100, occlusion: 0"


@pytest.mark.parametrize("sides", [(28, 28), (40, 30, 3)])
def test_noise_has_the_chosen_standard_deviation(shared_page, sides):
    grey = np.full(sides, 128)
    noisy = call_in_page(shared_page, f"applyChanges(pixels, shape, {UNCHANGED}, noise: 10 }})", grey)
    assert noisy.mean() == pytest.approx(128, abs=4 * 25.5 / 28)
    assert noisy.std() == pytest.approx(25.5, rel=0.1)
