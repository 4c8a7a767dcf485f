"""Pages of other origins ask only where a setting names them."""

import httpx
import pytest
from server import ROOT, serve

from service.settings import read_origins

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
PAGE, OTHER = "https://page.example", "https://other.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}


def test_no_other_origin_may_ask_unless_it_is_named(client):
    response = client.post("/predict", content=BOOT, headers={"Origin": PAGE})
    assert response.status_code == 200
    assert not any(name.startswith("access-control") for name in response.headers)


def test_a_named_origin_may_ask_and_is_told_before_it_shows_its_key(tmp_path):
    settings = {"MCD_CORS_ORIGINS": f"{PAGE}, http://localhost:8080", "MCD_API_KEYS": "key"}
    with serve(tmp_path / "home", **settings) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        for path in ("/predict", "/rank", "/v2/models/mcd/infer", "/livez"):
            asked = client.options(path, headers={"Origin": PAGE} | PREFLIGHT)
            assert asked.status_code == 200
            assert asked.headers["access-control-allow-origin"] == PAGE
            assert client.options(path, headers={"Origin": OTHER} | PREFLIGHT).status_code == 400
        for headers, status in (({"X-API-Key": "key"}, 200), ({}, 401)):
            response = client.post("/predict", content=BOOT, headers={"Origin": PAGE} | headers)
            assert response.status_code == status
            assert response.headers.get_list("access-control-allow-origin") == [PAGE]
            assert "Origin" in response.headers["vary"]
            assert "X-Request-ID" in response.headers["access-control-expose-headers"]
            response = client.post("/predict", content=BOOT, headers={"Origin": OTHER} | headers)
            assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("listed", ["page.example", "https://page.example/", "https://a.example/b", "https://", "a, *"])
def test_what_is_no_origin_is_refused(listed):
    with pytest.raises(ValueError, match="an origin must be like"):
        read_origins(listed)


def test_origins_are_listed_with_commas():
    assert read_origins(" https://a.example ,http://[::1]:80,*, ") == ["https://a.example", "http://[::1]:80", "*"]
    assert read_origins("") == []
