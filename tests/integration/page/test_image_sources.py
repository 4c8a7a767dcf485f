"""Every way to choose an image: gallery, file, drop, paste, drawing."""

import base64
import io

import numpy as np
import pytest
from files import encoded, png
from PIL import Image
from playwright.sync_api import Page, expect
from ui_page import (
    CLASSES,
    assert_shows,
    choose_file,
    gallery_file,
    label,
    move_slider,
    percent,
    predict_both,
    shown_pixels,
)

DRAWINGS = ("a face", "a cup", "a house", "a seven", "noise")


def test_gallery_images_show_the_predictions_of_the_api(shared_page, client):
    for name in reversed(CLASSES):
        shared_page.get_by_role("radio", name=name, exact=True).check()
        assert_shows(shared_page, *predict_both(client, gallery_file(name)))
        expect(shared_page.locator("#preprocessing")).to_have_text(
            f"{name}. PNG, 28 × 28 pixels: used unchanged, not inverted."
        )


def test_out_of_distribution_drawings_are_sent_and_inverted(shared_page):
    for name in DRAWINGS:
        with shared_page.expect_response(lambda one: "return_pixels" in one.url and one.ok) as answered:
            shared_page.get_by_role("radio", name=name, exact=True).check()
        dropout = answered.value.json()
        preprocessing = dropout["preprocessing"]
        assert (preprocessing["source"], preprocessing["width"], preprocessing["height"]) == ("PNG", 112, 112)
        if name != "noise":
            assert preprocessing["inverted"]
            expect(shared_page.locator("#preprocessing")).to_contain_text("inverted (dark became light)")
        expect(shared_page.locator("#original")).to_be_visible()
        expect(shared_page.locator("#confidence")).to_have_text(percent(dropout["confidence"]))
        assert shown_pixels(shared_page) == preprocessing["pixels"]
    assert shared_page.locator("#decision").inner_text().startswith("Abstains")  # noise


def send_file_event(page: Page, event: str, name: str, content: bytes) -> None:
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


@pytest.mark.parametrize("way", ["file", "drop", "paste"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_is_chosen_dropped_or_pasted(shared_page, client, way, kind):
    paper = Image.new("RGB", (200, 260), "white")
    paper.paste(
        Image.open(io.BytesIO(gallery_file("sandal"))).resize((160, 160)).point(lambda value: 255 - value), (20, 50)
    )
    photograph = encoded(paper, kind)
    if way == "file":
        choose_file(shared_page, "my sandal", photograph)
    else:
        send_file_event(shared_page, way, "my sandal", photograph)
        expect(shared_page.get_by_role("alert")).to_be_hidden()
    plain, dropout = predict_both(client, photograph)
    assert_shows(shared_page, plain, dropout)
    expect(shared_page.locator("#preprocessing")).to_contain_text(f"my sandal. {kind}, 200 × 260 pixels")
    expect(shared_page.locator("#network-input")).to_have_attribute("aria-label", "my sandal: 28 by 28 pixels")
    expect(shared_page.locator("#drop-area")).to_be_hidden()
    assert shared_page.locator("input[name=image]:checked").count() == 0
    expected = client.post("/predict", content=photograph, params={"return_pixels": True}).json()
    assert shown_pixels(shared_page) == expected["preprocessing"]["pixels"]


def test_a_drop_without_a_file_shows_a_problem(page):
    page.evaluate(
        "document.body.dispatchEvent(new DragEvent('drop', { bubbles: true, dataTransfer: new DataTransfer() }))"
    )
    expect(page.get_by_role("alert")).to_contain_text("The dropped content contains no file")
    assert label(page) == "ankle boot"


def test_the_button_opens_the_file_chooser(shared_page, client):
    with shared_page.expect_file_chooser() as chooser:
        shared_page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": gallery_file("dress")})
    assert_shows(shared_page, *predict_both(client, gallery_file("dress")))


def test_an_image_is_drawn_by_pointer(page, client):
    page.get_by_role("radio", name="a cup").check()
    expect(page.locator("#original")).to_be_visible()
    move_slider(page, "rotation", 45)
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
    drawn = np.array(shown_pixels(page))
    assert drawn[14, 9:11].max() == 255
    assert drawn[14, 0:6].max() == drawn[14, 13] == 0
    assert_shows(page, *predict_both(client, png(drawn.astype(np.uint8)), invert="no"))
    page.get_by_label("Eraser").check()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"], steps=8)
    page.mouse.up()
    assert np.array(shown_pixels(page))[14, 3:25].max() < drawn[14].max()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#warnings")).to_contain_text("the image is blank")
    assert np.array(shown_pixels(page)).max() == 0
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
    drawn = np.array(shown_pixels(page))
    assert drawn[10:18, 14].min() == 255
    assert drawn[:6].max() == 0
    assert_shows(page, *predict_both(client, png(drawn.astype(np.uint8)), invert="no"))
