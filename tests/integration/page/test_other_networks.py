"""The page for networks of other images: in colour, of other sizes, of many classes, and when one replaces another."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import rgb
import torch
from application import url_of
from axe_playwright_python.sync_playwright import Axe
from files import encoded, npy
from PIL import Image
from playwright.sync_api import Page, expect
from torch import nn
from ui_page import choose_file, label, move_slider, open_page, percent, shown_colours, wait_for_figure

from benchmarks.page import VIEWS
from model import load_artifact, save_compiled
from model.artifact import CARD, PRETRAINED
from model.input_spec import InputSpec
from model.network import compile_to_files
from training.examples import make_example

CHANGES = {"rotation": 77, "noise": 30, "blur": 1.5, "contrast": 40, "occlusion": 12}
MANY = tuple(f"class_{place}_whose_name_is_longer_than_its_column_and_has_no_space" for place in range(30))
GREY = InputSpec(
    channels=1, height=16, width=12, mean=(0.0,), std=(1.0,), resize="stretch", polarity="light-on-dark"
)  # fmt: skip


def save_grey(folder: Path) -> Path:
    """A grey network of 30 classes with long names, which allows moment propagation."""
    torch.manual_seed(60)
    layers = [nn.Flatten(), nn.Linear(192, 60), nn.ReLU(), nn.Dropout(0.3), nn.Linear(60, len(MANY))]
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        network[-1].weight *= 6  # so that some classes are probable
    compiled = compile_to_files(network, np.ones((1, *GREY.shape), np.float32))
    pixels = np.random.default_rng(62).integers(0, 256, GREY.pixel_shape, np.uint8)
    save_compiled(folder, compiled, {"classes": list(MANY)}, input_spec=GREY, examples=[make_example(MANY[0], pixels)])
    return folder


@pytest.fixture(scope="module")
def url(rgb_server) -> str:
    return rgb_server.url


@pytest.fixture(scope="module")
def page(browser, url) -> Iterator[Page]:
    """A page of the network in colour; each test chooses its own image first."""
    with open_page(browser, url) as opened:
        wait_for_figure(opened)
        yield opened


@pytest.fixture(scope="module")
def many_page(browser, tmp_path_factory) -> Iterator[tuple[Page, str]]:
    """A page of the network of many classes, and the service's URL."""
    with (
        url_of(MCD_MODEL=str(save_grey(tmp_path_factory.mktemp("grey") / "artifact"))) as url,
        open_page(browser, url) as opened,
    ):
        wait_for_figure(opened)
        yield opened, url


def predict(url: str, pixels: np.ndarray, **params: object) -> dict:
    """Predict pixels as they are."""
    headers = {"Content-Type": "application/x-npy"}
    response = httpx.post(f"{url}/predict", content=npy(pixels), headers=headers, params={"invert": "no"} | params)
    assert response.status_code == 200, response.text
    return response.json()


def expect_table(page: Page, without: dict, dropout: dict, classes: tuple[str, ...]) -> None:
    """Wait until the table shows both predictions: all classes in their order, or the ten most probable."""
    expect(page.locator("#dropout-result")).to_have_text(f"{dropout['label']}, {percent(dropout['confidence'])}")
    expect(page.locator("#eval-result")).to_have_text(f"{without['label']}, {percent(without['confidence'])}")
    rows = page.locator("#classes tbody tr")
    assert rows.locator("th").all_inner_texts() == list(dropout.get("classes", classes))
    eval_probs = [without["probabilities"][classes.index(name)] for name in dropout.get("classes", classes)]
    for column, probs in ((1, eval_probs), (2, dropout["probabilities"])):
        shown = rows.locator(f"td:nth-of-type({column}) .number").all_inner_texts()
        for text, prob in zip(shown, probs, strict=True):
            assert text in {percent(prob), percent(prob + 1e-9), percent(prob - 1e-9)}
    assert page.locator("#classes .winner th").inner_text() == dropout["label"]


def expect_prediction(page: Page, url: str, classes: tuple[str, ...] = rgb.CLASSES) -> dict:
    """Wait until the page shows the predictions for the pixels on its canvas; return the one with dropout."""
    pixels = shown_colours(page)
    if len(classes) > 12:
        pixels = np.ascontiguousarray(pixels[:, :, 0])
    dropout = predict(url, pixels, samples=100, **({"top_k": 10} if len(classes) > 12 else {}))
    expect_table(page, predict(url, pixels, top_k=len(classes)), dropout, classes)
    return dropout


def example(folder: Path, name: str) -> np.ndarray:
    (content,) = [one.content for one in load_artifact(folder).examples if one.name == name]
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_examples_of_the_artifact_are_shown_and_predicted(page, url, rgb_folder):
    names = page.locator("#examples input").evaluate_all("all => all.map((one) => one.value)")
    assert names == [one.name for one in load_artifact(rgb_folder).examples] == ["g", "c", "e"]
    for name in reversed(names):
        page.get_by_role("radio", name=name, exact=True).check()
        expect(page.locator("#preprocessing")).to_have_text(f"{name}. PNG, 24 × 20 pixels: used unchanged.")
        assert np.array_equal(shown_colours(page), example(rgb_folder, name))
        dropout = expect_prediction(page, url)
        assert label(page) == dropout["label"]
    loaded = page.locator("#examples img").evaluate_all(
        "all => all.map((one) => [one.naturalWidth, one.naturalHeight])"
    )
    assert loaded == [[24, 20]] * 3
    expect(page.locator("#network-input")).to_have_attribute("aria-label", "g: 24 by 20 pixels")


def test_what_the_network_does_not_have_is_not_offered(page):
    for name in ("#draw", "#invert", "#license"):
        expect(page.locator(name)).to_be_hidden()
    expect(page.get_by_label("all masks (moment propagation)")).to_be_disabled()
    expect(page.locator("#no-moments")).to_have_text(
        "This network has no moment propagation: moments need linear layers, ReLU and dropout of units from the first "
        "dropout to the logits, and this network also has conv2d (layer 3)."
    )
    assert page.locator("#occlusion").get_attribute("max") == "20"


def test_changes_are_made_in_the_size_and_the_colours_of_the_input(page, url, rgb_folder):
    page.get_by_role("radio", name="c", exact=True).check()
    original = example(rgb_folder, "c")
    expect(page.locator("#preprocessing")).to_contain_text("c. PNG")
    for name, value in CHANGES.items():
        move_slider(page, name, value)
        assert shown_colours(page).shape == original.shape
        assert not np.array_equal(shown_colours(page), original)
        expect_prediction(page, url)
        page.get_by_role("button", name="Reset the changes").click()
        assert np.array_equal(shown_colours(page), original)
        expect_prediction(page, url)
    for name, value in CHANGES.items():
        move_slider(page, name, value)
    expect_prediction(page, url)


def test_a_photograph_is_prepared_by_the_service_and_changed_as_prepared(page, url):
    photograph = encoded(Image.effect_noise((200, 130), 60).convert("RGB").resize((300, 130)), "JPEG")
    choose_file(page, "my photograph", photograph)
    answer = httpx.post(f"{url}/predict", content=photograph, params={"return_pixels": True}).json()
    expect(page.locator("#preprocessing")).to_have_text("my photograph. JPEG, 300 × 130 pixels: cropped, resized.")
    assert np.array_equal(shown_colours(page), answer["preprocessing"]["pixels"])
    expect(page.locator("#original")).to_be_visible()
    expect_prediction(page, url)
    move_slider(page, "rotation", 90)
    expect_prediction(page, url)


def test_the_rotation_figure_has_the_colours(page, rgb_folder):
    with page.expect_response(lambda one: "/predict_batch" in one.url) as answered:
        page.get_by_role("radio", name="e", exact=True).check()
    images = np.load(io.BytesIO(answered.value.request.post_data_buffer))
    original = example(rgb_folder, "e")
    assert images.shape == (36, *original.shape)
    assert np.array_equal(images[0], original)
    assert np.array_equal(images[18], original[::-1, ::-1])
    expect(page.locator("#rotation-summary")).to_contain_text("of 36 angles")
    expect(page.locator("#rotation-figure svg")).to_be_visible()


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_no_violation_and_nothing_overflows(browser, url, view):
    with open_page(browser, url, **VIEWS[view]) as page:
        wait_for_figure(page)
        page.get_by_text("Decision settings").click()
        page.get_by_text("Table of the means").click()
        move_slider(page, "rotation", 33)
        expect(page.locator("#prediction")).to_have_attribute("data-rotation", "33")
        assert Axe().run(page).response["violations"] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        box = page.locator("#network-input").bounding_box()
        assert box["width"] / box["height"] == pytest.approx(24 / 20, rel=0.02)


def test_of_many_classes_the_most_probable_are_shown(many_page):
    page, url = many_page
    dropout = expect_prediction(page, url, MANY)
    assert dropout["classes"][0] == dropout["label"]
    expect(page.locator("#class-title")).to_have_text("10 of 30 classes")
    expect(page.locator("#sentence")).to_contain_text("The confidence is not calibrated.")
    titles = page.locator("#classes tbody .name").evaluate_all("all => all.map((one) => one.title)")
    assert titles == dropout["classes"]
    move_slider(page, "rotation", 90)
    rotated = expect_prediction(page, url, MANY)
    assert rotated["classes"] != dropout["classes"]
    wide = page.viewport_size
    for size in (VIEWS["narrow"]["viewport"], wide):
        page.set_viewport_size(size)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert Axe().run(page).response["violations"] == []


def test_masks_under_which_an_unlisted_class_may_win_are_not_counted(many_page):
    page, url = many_page
    page.get_by_role("button", name="Reset the changes").click()
    dropout = expect_prediction(page, url, MANY)
    pixels = np.ascontiguousarray(shown_colours(page)[:, :, 0])
    every = predict(url, pixels, samples=100, return_samples=True, top_k=len(MANY))["sample_probabilities"]
    agreeing = sum(max(probs) == probs[dropout["class_index"]] for probs in every)
    sentence = page.locator("#sentence").inner_text()
    count = int(sentence.removeprefix("At least ").removeprefix("All ").split()[0])
    assert 0 < count <= agreeing
    assert count == agreeing or sentence.startswith("At least ")


def test_moments_and_drawing_are_offered_where_the_network_allows_them(many_page):
    page, url = many_page
    page.get_by_label("all masks (moment propagation)").check()
    expect(page.locator("#dropout-title")).to_have_text("Mean over all masks")
    assert page.locator("#classes tbody tr").count() == 10
    page.get_by_label("sampled masks").check()
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("#preprocessing")).to_have_text("Your drawing. Used as drawn.")
    box = page.locator("#network-input").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"], steps=8)
    page.mouse.up()
    drawn = shown_colours(page)[:, :, 0]
    assert drawn.shape == (16, 12)
    assert drawn[8, 5:7].max() > 0
    assert drawn[:, :3].max() == drawn[:, 9:].max() == 0
    expect_prediction(page, url, MANY)


def test_the_page_follows_a_network_that_differs_in_moments_and_examples_alone(browser, tmp_path):
    """The first request with a setting that the new network refuses is sent again without it."""
    served = save_grey(tmp_path / "served")
    admin = {"X-API-Key": "admin-key"}
    with (
        url_of(MCD_MODEL=str(served), MCD_ADMIN_KEYS="admin-key") as url,
        open_page(browser, url, faults=("status of 4",)) as page,
    ):
        wait_for_figure(page)
        page.get_by_label("all masks (moment propagation)").check()
        expect(page.locator("#dropout-title")).to_have_text("Mean over all masks")
        card = json.loads((served / CARD).read_text())
        pixels = np.random.default_rng(63).integers(0, 256, GREY.pixel_shape, np.uint8)
        content = make_example(MANY[0], pixels).content
        (served / card["examples"][0]["file"]).write_bytes(content)
        card["examples"][0]["sha256"] = hashlib.sha256(content).hexdigest()
        (served / CARD).write_text(json.dumps(card | {"chain": {"unavailable": "it is another network"}}))
        assert httpx.post(f"{url}/admin/reload", headers=admin).status_code == 200
        page.locator("#false_alarm_rate").select_option("0.05", force=True)
        expect(page.locator("#no-moments")).to_have_text(
            "This network has no moment propagation: it is another network."
        )
        expect(page.get_by_label("all masks (moment propagation)")).to_be_disabled()
        expect(page.locator("#dropout-title")).to_have_text("Mean over 100 masks")
        expect(page.get_by_role("alert")).to_be_hidden()
        thumbnail = page.locator("#examples img").evaluate(
            """async (one) => {
              await one.decode();
              const canvas = Object.assign(document.createElement("canvas"), { width: 12, height: 16 });
              canvas.getContext("2d").drawImage(one, 0, 0);
              return Array.from(canvas.getContext("2d").getImageData(0, 0, 12, 16).data);
            }"""
        )
        assert np.array_equal(np.reshape(thumbnail, (16, 12, 4))[:, :, 0], pixels)


def test_the_page_follows_a_network_of_another_shape(browser, tmp_path, rgb_folder):
    served = tmp_path / "served"
    shutil.copytree(PRETRAINED, served)
    admin = {"X-API-Key": "admin-key"}
    with url_of(MCD_MODEL=str(served), MCD_ADMIN_KEYS="admin-key") as url:
        for act in ("example", "slider", "drawing"):
            with open_page(browser, url, faults=("status of 4",)) as page:
                wait_for_figure(page)
                assert label(page) == "ankle boot"
                shutil.copytree(rgb_folder, served, dirs_exist_ok=True)
                assert httpx.post(f"{url}/admin/reload", headers=admin).status_code == 200
                if act == "example":
                    page.get_by_role("radio", name="bag", exact=True).check()  # this file is no longer served
                elif act == "slider":
                    page.route("**/ui/examples/0.png*", lambda _: None)  # holds them back
                    move_slider(page, "rotation", 20)
                    expect(page.locator("#classes tbody tr")).to_have_count(7)
                    expect(page.get_by_role("alert")).to_be_hidden()  # also before there is another prediction
                    page.unroute("**/ui/examples/0.png*")  # sends what was held back
                else:
                    page.get_by_role("radio", name="a seven", exact=True).check()
                expect(page.get_by_role("radio", name="g", exact=True)).to_be_checked()
                expect(page.locator("#preprocessing")).to_contain_text("g. PNG, 24 × 20 pixels")
                assert label(page) in rgb.CLASSES
                assert page.locator("#classes tbody tr").count() == 7
                expect(page.get_by_role("alert")).to_be_hidden()
                shutil.rmtree(served)
                shutil.copytree(PRETRAINED, served)
                assert httpx.post(f"{url}/admin/reload", headers=admin).status_code == 200
