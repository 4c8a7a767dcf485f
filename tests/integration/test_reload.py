"""Reloading over HTTP; `tests/e2e/test_lifecycle.py` swaps models for real."""


def test_without_admin_keys_there_is_no_administration(client):
    assert client.post("/admin/reload").status_code == 404
