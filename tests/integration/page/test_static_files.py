"""The files under /ui as they are served and stored."""

import re

from server import ROOT
from ui_page import WEB

from model import load_artifact


def test_files_have_security_headers_and_are_cacheable(client):
    for path in ("/ui", "/ui/card", "/ui/main.js", "/ui/card.css", "/ui/failures.png", "/ui/examples/4.png"):
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
    kinds |= {"/ui/card": "text/html", "/ui/card.css": "text/css", "/ui/failures.png": "image/png"}
    kinds |= {"/ui/icon.svg": "image/svg+xml", "/ui/examples/8.png": "image/png"}
    kinds |= {"/ui/LICENSE.fashion-mnist": "text/plain", "/card.json": "application/json"}
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
    artifact = load_artifact()
    expected = {name: value for name, value in artifact.card.items() if name != "calibrations"}
    assert client.get("/card.json").json() == expected | {"input_specification": artifact.input.to_json()}
    assert len(client.get("/card.json").content) < 20_000


def test_the_license_of_the_clothes_is_served():
    license_text = (ROOT / "docs" / "images" / "LICENSE.fashion-mnist").read_text()
    assert (WEB / "LICENSE.fashion-mnist").read_text().endswith(license_text.partition("The MIT")[2])
