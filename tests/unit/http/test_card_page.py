"""The model card as it is served: the page of the served model, its style sheet and its pictures."""

import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import rgb
from application import client_of
from PIL import Image

from model import load_artifact
from model.artifact import FAILURES, PRETRAINED, add_to_card
from model.card_page import STYLE

PATHS = ("/ui/card", "/ui/card.css", "/ui/failures.png")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """Of the embedded network, whose failures are known."""
    with client_of() as opened:
        yield opened


def test_page_style_and_pictures_come_from_the_service(client):
    page, style, pictures = (client.get(path) for path in PATHS)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert load_artifact().sha256 in page.text
    assert style.text == STYLE
    assert pictures.content == (PRETRAINED / FAILURES).read_bytes()
    count = sum(len(kind["images"]) for kind in load_artifact().card["failures"]["kinds"])
    assert np.asarray(Image.open(io.BytesIO(pictures.content))).shape == (28, 28 * count)
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("path", PATHS)
def test_a_current_copy_is_not_sent_again(client, path):
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(path, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)
    assert client.get(path, headers={"If-Modified-Since": "Wed, 21 Oct 2065 07:28:00 GMT"}).status_code == 200


def test_a_network_without_failures_and_texts_of_anybody(tmp_path):
    folder = rgb.save(tmp_path / "artifact")
    add_to_card(folder, {"intended_use": "<script>alert(1)</script> \ud800"})
    with client_of(MCD_MODEL=str(folder)) as client:
        page = client.get("/ui/card")
        assert page.status_code == 200
        assert "&lt;script&gt;alert(1)&lt;/script&gt; ?" in page.text
        assert "<script" not in page.text
        missing = client.get("/ui/failures.png")
        assert missing.status_code == 404
        assert missing.json()["detail"] == "the served model has no pictures of known failures"


def test_after_a_reload_the_card_is_of_the_new_model(tmp_path):
    folder = rgb.save(tmp_path / "artifact")
    with client_of(MCD_MODEL=str(folder), MCD_ADMIN_KEYS="key") as client:
        before = client.get("/ui/card")
        add_to_card(folder, {}, failures=[{"text": "Now known.", "images": ["one"]}], pictures=b"PNG")
        assert client.post("/admin/reload", headers={"Authorization": "Bearer key"}).status_code == 200
        after = client.get("/ui/card", headers={"If-None-Match": before.headers["etag"]})
        assert "Now known." in after.text
        assert client.get("/ui/failures.png").content == b"PNG"
