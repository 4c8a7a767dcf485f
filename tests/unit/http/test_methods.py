"""Paths, and the methods that each understands."""

import pytest


def test_unknown_paths_and_wrong_methods_are_refused(client):
    assert client.get("/nothing").status_code == 404
    response = client.get("/predict")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert client.post("/metrics").status_code == 405


@pytest.mark.parametrize("path", ["/metrics", "/docs.json"])
def test_head_is_allowed_where_get_is(client, path):
    assert client.head(path).status_code == 200
    assert client.delete(path).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/healthz", "/", "/docs.json", "/schema.json", "/metrics", "/card.json", "/ui"]
)
def test_health_and_descriptions_answer(client, path):
    assert client.get(path).status_code == 200


def test_without_admin_keys_there_is_no_admin_route(client):
    assert client.post("/admin/reload").status_code == 404
