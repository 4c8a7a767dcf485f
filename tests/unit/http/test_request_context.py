"""What every answer tells of its request, who may ask, and how much at once: on real servers."""

import asyncio
import gzip
import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from files import npy_request
from server import ROOT, Server, refused_start, serve

from service.schemas.answers import Answer
from service.schemas.parameters import Parameters

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
KEYS = ("first-key", "zweiter Schlüssel")


def log_lines(server: Server, request_id: str) -> list[dict]:
    """Those of a request; the last is written after its answer."""
    found: list[dict] = []
    end = time.monotonic() + 5
    while not found and time.monotonic() < end:
        lines = [line for line in server.log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        found = [line for line in map(json.loads, lines) if line.get("request_id") == request_id]
    return found


@pytest.mark.parametrize("path", ["/predict", "/nothing", "/livez", "/metrics", "/"])
def test_every_answer_has_the_id_of_its_request(client, path):
    for given in ("a-1", "x" * 128, "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"):
        assert client.get(path, headers={"X-Request-ID": given}).headers["x-request-id"] == given
    for given in ("", "a b", "x" * 129, "é".encode(), "<script>"):
        made = client.get(path, headers={"X-Request-ID": given}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    assert client.get(path).headers["x-request-id"] != client.get(path).headers["x-request-id"]


def test_a_trace_is_gone_on_with(client):
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
def test_what_is_no_trace_is_not(client, given):
    assert "traceresponse" not in client.get("/livez", headers={"traceparent": given}).headers


def test_the_stages_of_an_answer_are_timed(client):
    for path in ("/predict", "/predict_batch"):
        timing = client.post(path, content=BOOT, params={"samples": 100}).headers["server-timing"]
        stages = dict(re.findall(r"(\w+);dur=([0-9.]+)", timing))
        assert stages.keys() == {"decode", "infer", "encode"}
        assert all(float(milliseconds) > 0 for milliseconds in stages.values())


def test_pages_and_answers_are_guarded_against_misuse(client):
    for path in ("/", "/docs.json"):
        headers = client.get(path).headers
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert "default-src 'self'" in headers["content-security-policy"]


def test_the_page_needs_nothing_from_elsewhere(client):
    """What it loads is there; the content security policy keeps it from the rest."""
    page = client.get("/").text
    scripts = re.findall(r'<script[^>]*src="([^"]+)"', page) + re.findall(
        r'<link[^>]*stylesheet[^>]*href="([^"]+)"', page
    )
    assert scripts
    for path in scripts:
        assert client.get(path.removeprefix(".")).status_code == 200
    assert "docs.json" in client.get("/static_content/swagger-initializer.js").text


@pytest.mark.parametrize("path", ["/metrics", "/docs.json"])
def test_what_can_be_read_has_a_head(client, path):
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert client.delete(path).headers["allow"] == "GET, HEAD"


def test_a_request_is_one_line_of_the_log_without_contents(server, client):
    client.post("/predict", content=BOOT, params={"samples": 30}, headers={"X-Request-ID": "logged-1"})
    client.post("/predict", content=b"secret", headers={"X-Request-ID": "logged-2"})
    client.get("/private/path", headers={"X-Request-ID": "logged-3"})
    (line,) = log_lines(server, "logged-1")
    told = {name: line[name] for name in ("level", "event", "method", "route", "status", "bytes", "images", "samples")}
    assert told == {
        "level": "info", "event": "request", "method": "POST", "route": "/predict", "status": 200, "bytes": len(BOOT),
        "images": 1, "samples": 30,
    }  # fmt: skip
    assert 0 < line["seconds"] < 5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    (line,) = log_lines(server, "logged-2")
    assert (line["status"], line["problem"]) == (415, "unsupported-image-format")
    (line,) = log_lines(server, "logged-3")
    assert line["route"] == "other"
    for unwanted in ("secret", "/private/path"):
        assert unwanted not in server.log.read_text()


def test_a_compressed_body_is_taken(client):
    expected = client.post("/predict", content=BOOT).content
    members = gzip.compress(BOOT[:100]) + gzip.compress(b"") + gzip.compress(BOOT[100:])
    raw = zlib.compress(BOOT)[2:-4]  # without zlib's header and checksum
    bodies = [("gzip", gzip.compress(BOOT)), ("gzip", members), ("gzip", members + bytes(100)), ("GZIP", members)]
    bodies += [("deflate", zlib.compress(BOOT)), ("deflate", raw), ("identity", BOOT)]
    for encoding, body in bodies:
        response = client.post("/predict", content=body, headers={"Content-Encoding": encoding})
        assert (response.status_code, response.content) == (200, expected)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(f"\n{KEYS[1]}\n")
    settings = {"MCD_API_KEYS": f"{KEYS[0]}, other", "MCD_API_KEYS_FILE": str(folder / "keys")}
    with serve(folder / "home", MCD_METRICS_NEED_KEY="true", **settings) as running:
        yield running


def test_only_who_has_a_key_is_answered(keyed):
    with httpx.Client(base_url=keyed.url, timeout=30) as client:
        for path in ("/predict", "/predict_batch", "/rank"):
            for key in KEYS:
                for headers in ({"X-API-Key": key.encode()}, {"Authorization": f"Bearer {key}".encode()}):
                    assert client.post(path, content=BOOT, headers=headers).status_code == 200
            wrong = ("", "first-ke", "first-key2", "FIRST-KEY", KEYS[0][::-1], ",", "é")
            for headers in ({}, *({"X-API-Key": key.encode()} for key in wrong), {"Authorization": f"Basic {KEYS[0]}"}):
                response = client.post(path, content=BOOT, headers=headers)
                assert (response.status_code, response.json()["type"]) == (401, "urn:mcd:problem:unauthorized")
                assert response.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"X-API-Key": KEYS[0]}).status_code == 200
        for path in ("/livez", "/readyz", "/docs.json"):
            assert client.get(path).status_code == 200
        assert client.get("/docs.json").json()["paths"]["/predict"]["post"]["security"]
    assert not any(key in keyed.log.read_text() for key in (*KEYS, "first-ke"))


def test_keys_that_cannot_be_read_are_refused_at_the_start(tmp_path):
    for file in (tmp_path / "missing", tmp_path):
        _, said = refused_start(tmp_path / "home", MCD_API_KEYS_FILE=str(file))
        assert "MCD_API_KEYS_FILE: can't be read" in said
    _, said = refused_start(tmp_path / "home", MCD_API_KEYS="secret-key", MCD_LOG_LEVEL="loud")
    assert "MCD_LOG_LEVEL" in said
    assert "secret-key" not in said


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Iterator[Server]:
    settings = {"MCD_MAX_IN_FLIGHT": "4", "MCD_MAX_BATCHES_IN_FLIGHT": "1", "MCD_MAX_BUFFERED_BYTES": "3000000"}
    with serve(tmp_path_factory.mktemp("narrow") / "home", **settings) as running:
        yield running


async def all_at_once(url: str, count: int, **request) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        return await asyncio.gather(*(client.post("/predict", **request) for _ in range(count)))


def test_more_work_than_is_taken_on_is_refused_at_once_and_the_rest_answered(narrow):
    alone = httpx.post(f"{narrow.url}/predict", content=BOOT, params={"samples": 1000}).content
    responses = asyncio.run(all_at_once(narrow.url, 200, content=BOOT, params={"samples": 1000}))
    answered = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code == 503]
    assert len(answered) + len(refused) == 200
    assert len(answered) >= 4
    assert len(refused) >= 20
    assert all(response.content == alone for response in answered)
    assert {response.headers["retry-after"] for response in refused} == {"1"}
    assert {response.json()["type"] for response in refused} == {"urn:mcd:problem:overloaded"}
    assert httpx.post(f"{narrow.url}/predict", content=BOOT, params={"samples": 1000}).content == alone


def test_batches_are_bounded_by_a_number_of_their_own(narrow):
    """While one is in work the next is refused, and single images are answered."""
    many = npy_request(np.zeros((1000, 28, 28), np.uint8)) | {"params": {"samples": 100}}

    async def ask() -> tuple[list[int], int]:
        async with httpx.AsyncClient(base_url=narrow.url, timeout=60) as client:
            batches = asyncio.gather(*(client.post("/predict_batch", **many) for _ in range(3)))
            await asyncio.sleep(0.1)
            single = await client.post("/predict", content=BOOT)
            assert not batches.done()
            return sorted(answer.status_code for answer in await batches), single.status_code

    assert asyncio.run(ask()) == ([200, 503, 503], 200)


def test_a_fault_of_ours_is_told_without_its_trace_and_logged_with_it(tmp_path):
    with (
        serve(tmp_path / "home", "tests.faulty:UncertaintyService") as faulty,
        httpx.Client(base_url=faulty.url, timeout=30) as client,
    ):
        for path in ("/predict", "/predict_batch"):
            name = path.strip("/")
            response = client.post(path, content=BOOT, params={"seed": 13}, headers={"X-Request-ID": name})
            problem = response.json() if path == "/predict" else response.json()["results"][0]["error"]
            assert response.status_code == (500 if path == "/predict" else 200)
            assert (problem["status"], problem["type"]) == (500, "urn:mcd:problem:internal-error")
            assert name in problem["detail"]
            assert "a fault on purpose" not in response.text
            told = {line["event"]: line for line in log_lines(faulty, name)}
            assert "RuntimeError: a fault on purpose" in told["failure"]["exception"]
            assert client.post(path, content=BOOT).status_code == 200


def test_uploads_together_are_bounded(narrow):
    async def upload() -> list[int]:
        async def body():
            yield bytes(2_000_000)
            await asyncio.sleep(1)
            yield b"x"

        async with httpx.AsyncClient(base_url=narrow.url, timeout=30) as client:
            answers = await asyncio.gather(*(client.post("/predict", content=body()) for _ in range(3)))
            return sorted(answer.status_code for answer in answers)

    assert asyncio.run(upload()) == [415, 503, 503]
    assert httpx.post(f"{narrow.url}/predict", content=BOOT).status_code == 200


def test_the_description_is_of_what_is_answered(client):
    document = client.get("/docs.json").json()
    assert document["openapi"] == "3.1.0"
    parameters = {one["name"] for one in document["paths"]["/predict"]["post"]["parameters"]}
    assert parameters == set(Parameters.model_fields)
    operation = document["paths"]["/predict"]["post"]
    example = operation["responses"]["200"]["content"]["application/json"]["example"]
    assert (
        client.post("/predict", json=operation["requestBody"]["content"]["application/json"]["example"]).json()
        == example
    )
    assert Answer.model_validate(example).label == "trouser"


def test_a_tool_that_reads_the_description_finds_no_fault(server):
    """Every check of schemathesis; `make fuzz` does the same with five thousand requests."""
    folder = ROOT / "tests" / "contract"
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml"), "run",
            f"{server.url}/docs.json", "--checks", "all", "--max-examples", os.environ.get("MCD_FUZZ_EXAMPLES", "40"),
            "--seed", "1", "--no-color",
        ],
        cwd=folder,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "media_types"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (generated,) = re.findall(r"(\d+) generated, \1 passed", done.stdout)
    assert int(generated) >= int(os.environ.get("MCD_FUZZ_LEAST", "500"))
    assert "Unresolvable" not in done.stdout
    assert "Traceback" not in server.log.read_text()
