"""The figure of predictions against the rotation angle."""

import io

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Response, expect
from ui_page import CLASSES, gallery_file, percent

from training.vision import functional


def sent_images(response: Response) -> np.ndarray:
    """The images of the request."""
    return np.load(io.BytesIO(response.request.post_data_buffer))


def test_rotation_figure_shows_the_means_of_one_batch(page, client):
    original = np.asarray(Image.open(io.BytesIO(gallery_file("sneaker"))))

    def is_of_sneaker(response: Response) -> bool:
        """Not the answer for the image that the page opens with."""
        return "/predict_batch" in response.url and np.array_equal(sent_images(response)[0], original)

    with page.expect_response(is_of_sneaker) as answered:
        page.get_by_role("radio", name="sneaker", exact=True).check()
    images_T = sent_images(answered.value)
    results = answered.value.json()["results"]
    assert (len(images_T), len(results)) == (36, 36)
    assert "samples=100" in answered.value.url
    turned = functional.rotate(torch.from_numpy(original.copy())[None].float(), 90.0)[0].numpy()
    assert np.abs(images_T[9].astype(float) - turned).max() <= 1
    page.get_by_text("Table of the means").click()
    expect(page.locator("#rotation-table tbody tr")).to_have_count(37)
    names = page.locator("#rotation-table thead th").all_inner_texts()[1:]
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
