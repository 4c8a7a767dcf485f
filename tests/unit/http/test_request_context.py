"""Request ids, trace context and timings in the headers of answers."""

import re

import pytest
from server import ROOT

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("path", ["/predict", "/nothing", "/livez", "/metrics", "/"])
def test_every_answer_has_a_request_id(client, path):
    for given in ("a-1", "x" * 128, "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"):
        assert client.get(path, headers={"X-Request-ID": given}).headers["x-request-id"] == given
    for given in ("", "a b", "x" * 129, "é".encode(), "<script>"):
        made = client.get(path, headers={"X-Request-ID": given}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    assert client.get(path).headers["x-request-id"] != client.get(path).headers["x-request-id"]


def test_a_traceparent_is_propagated(client):
    sent = f"00-{TRACE}-00f067aa0ba902b7-01"
    found = client.get("/livez", headers={"traceparent": sent}).headers["traceresponse"]
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", found)
    assert found != sent
    later_version = f"cc-{TRACE}-00f067aa0ba902b7-01-more"
    assert TRACE in client.get("/livez", headers={"traceparent": later_version}).headers["traceresponse"]


@pytest.mark.parametrize(
    "given",
    [
        "", "00", f"00-{TRACE}-00f067aa0ba902b7",
        f"ff-{TRACE}-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7-01-x",
    ],
)  # fmt: skip
def test_an_invalid_traceparent_is_ignored(client, given):
    assert "traceresponse" not in client.get("/livez", headers={"traceparent": given}).headers


def test_server_timing_lists_the_stages(client):
    for path in ("/predict", "/predict_batch"):
        timing = client.post(path, content=BOOT, params={"samples": 100}).headers["server-timing"]
        stages = dict(re.findall(r"(\w+);dur=([0-9.]+)", timing))
        assert stages.keys() == {"decode", "infer", "encode"}
        assert all(float(milliseconds) > 0 for milliseconds in stages.values())
