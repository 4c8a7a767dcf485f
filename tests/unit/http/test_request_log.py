"""What the log says about a request."""

import json
import re

import pytest
from application import client_of
from files import png

from service.inference.predictor import Predictor


def lines_of(log: str, request_id: str) -> list[dict]:
    return [line for line in map(json.loads, log.splitlines()) if line.get("request_id") == request_id]


def test_a_request_is_logged_in_one_line_without_contents(capsys, served):
    image = png(served.pixels_B[0])
    with client_of(**served.settings) as client:
        client.post("/predict", content=image, params={"samples": 30}, headers={"X-Request-ID": "logged-1"})
        client.post("/predict", content=b"secret", headers={"X-Request-ID": "logged-2"})
        client.get("/private/path", headers={"X-Request-ID": "logged-3"})
    log = capsys.readouterr().out
    (line,) = lines_of(log, "logged-1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("seconds") > 0
    assert line == {
        "level": "info", "event": "request", "request_id": "logged-1", "method": "POST", "route": "/predict",
        "status": 200, "bytes": len(image), "images": 1, "samples": 30,
    }  # fmt: skip
    (line,) = lines_of(log, "logged-2")
    assert (line["status"], line["problem"]) == (415, "unsupported-image-format")
    (line,) = lines_of(log, "logged-3")
    assert line["route"] == "other"
    assert "secret" not in log
    assert "/private/path" not in log


def test_a_client_error_is_logged_without_stack_trace(capsys):
    with client_of() as client:
        client.post("/predict", content=b"no image")
        client.post("/predict", content=b"{", headers={"Content-Type": "application/json"})
    captured = capsys.readouterr()
    assert captured.out.count('"event":"request"') == 2
    assert "Traceback" not in captured.out + captured.err


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("a fault on purpose")


@pytest.mark.parametrize("path", ["/predict", "/predict_batch"])
def test_an_internal_error_is_logged_and_answered_without_details(capsys, monkeypatch, served, path):
    image = png(served.pixels_B[0])
    with client_of(**served.settings) as client:
        with monkeypatch.context() as patched:
            patched.setattr(Predictor, "predict", fail)
            response = client.post(path, content=image, headers={"X-Request-ID": "failing-1"})
        assert client.post(path, content=image).status_code == 200
    problem = response.json() if path == "/predict" else response.json()["results"][0]["error"]
    assert response.status_code == (500 if path == "/predict" else 200)
    assert (problem["status"], problem["type"]) == (500, "urn:mcd:problem:internal-error")
    assert "failing-1" in problem["detail"]
    assert "a fault on purpose" not in response.text
    events = {line["event"]: line for line in lines_of(capsys.readouterr().out, "failing-1")}
    assert "RuntimeError: a fault on purpose" in events["failure"]["exception"]
    assert "request" in events
