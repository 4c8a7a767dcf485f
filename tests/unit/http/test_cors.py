"""Pages of other origins: only those that a setting names may read answers."""

import pytest
from application import client_of
from server import ROOT

from service.settings import read_origins

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
PAGE, OTHER = "https://page.example", "https://other.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}


def test_by_default_no_other_origin_is_allowed(client):
    response = client.post("/predict", content=BOOT, headers={"Origin": PAGE})
    assert response.status_code == 200
    assert not any(name.startswith("access-control") for name in response.headers)


def test_named_origin_needs_no_key_for_preflight():
    with client_of(MCD_CORS_ORIGINS=f"{PAGE}, http://localhost:8080", MCD_API_KEYS="key") as client:
        for path in ("/predict", "/rank", "/v2/models/mcd/infer", "/livez"):
            preflight = client.options(path, headers={"Origin": PAGE} | PREFLIGHT)
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == PAGE
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
def test_an_invalid_origin_is_refused(listed):
    with pytest.raises(ValueError, match="an origin must be like"):
        read_origins(listed)


def test_origins_are_listed_with_commas():
    assert read_origins(" https://a.example ,http://[::1]:80,*, ") == ["https://a.example", "http://[::1]:80", "*"]
    assert read_origins("") == []
