"""API keys."""

import pytest
from application import client_of
from server import ROOT

from service.settings import Settings, SettingsError

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
KEYS = ("first-key", "zweiter Schlüssel")
WRONG_KEYS = ("", "first-ke", "first-key2", "FIRST-KEY", KEYS[0][::-1], ",", "é")


@pytest.fixture
def settings(tmp_path) -> dict[str, str]:
    (tmp_path / "keys").write_text(f"\n{KEYS[1]}\n")
    return {
        "MCD_API_KEYS": f"{KEYS[0]}, other",
        "MCD_API_KEYS_FILE": str(tmp_path / "keys"),
        "MCD_METRICS_NEED_KEY": "true",
    }


def test_only_requests_with_a_key_are_answered(settings, capsys):
    with client_of(**settings) as client:
        for path in ("/predict", "/predict_batch", "/rank"):
            for key in KEYS:
                for headers in ({"X-API-Key": key.encode()}, {"Authorization": f"Bearer {key}".encode()}):
                    assert client.post(path, content=BOOT, headers=headers).status_code == 200
            wrong = [{"X-API-Key": key.encode()} for key in WRONG_KEYS]
            for headers in ({}, *wrong, {"Authorization": f"Basic {KEYS[0]}"}):
                response = client.post(path, content=BOOT, headers=headers)
                assert (response.status_code, response.json()["type"]) == (401, "urn:mcd:problem:unauthorized")
                assert response.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"X-API-Key": KEYS[0]}).status_code == 200
        for path in ("/livez", "/readyz", "/docs.json"):
            assert client.get(path).status_code == 200
        assert client.get("/docs.json").json()["paths"]["/predict"]["post"]["security"]
    log = capsys.readouterr().out
    assert '"status":401' in log
    assert not any(key in log for key in (*KEYS, "first-ke"))


def test_a_key_file_that_cannot_be_read_is_refused(tmp_path):
    for file in (tmp_path / "missing", tmp_path):
        with pytest.raises(SettingsError, match="MCD_API_KEYS_FILE: can't be read"):
            Settings.from_mapping({"MCD_API_KEYS_FILE": str(file)})


def test_a_refused_setting_does_not_reveal_keys():
    with pytest.raises(SettingsError, match="MCD_LOG_LEVEL") as refusal:
        Settings.from_mapping({"MCD_API_KEYS": "secret-key", "MCD_LOG_LEVEL": "loud"})
    assert "secret-key" not in str(refusal.value)
