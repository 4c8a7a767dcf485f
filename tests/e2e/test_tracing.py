"""Spans that a real server sends, received and decoded by OpenTelemetry's own protocol classes."""

import gzip
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from server import ROOT, free_port, serve

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Takes traces by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Span] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"] == "mcd"
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def attributes(span: Span) -> dict:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_requests_become_spans(collector, tmp_path):
    settings = {"MCD_OTLP_ENDPOINT": collector.url, "MCD_TRACED_RATIO": "1"}
    with (
        serve(tmp_path / "home", **settings) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        collector.spans.clear()
        traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        answered = client.post("/predict", content=BOOT, params={"samples": 30}, headers=traced)
        client.post("/predict", content=BOOT, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})  # not sampled
        new = client.post("/predict", content=b"none")
    assert answered.status_code == 200  # the rest is sent at the end
    by_route = [span for span in collector.spans if span.name == "POST /predict"]
    assert len(by_route) == 2
    (ours,) = (span for span in by_route if span.trace_id.hex() == TRACE)
    (other,) = (span for span in by_route if span.trace_id.hex() != TRACE)
    assert (ours.parent_span_id.hex(), ours.kind) == (PARENT, Span.SPAN_KIND_SERVER)
    assert answered.headers["traceresponse"] == f"00-{TRACE}-{ours.span_id.hex()}-01"
    found = attributes(ours)
    assert (found["http.route"], found["http.request.method"]) == ("/predict", "POST")
    assert (found["http.response.status_code"], found["mcd.samples"], found["mcd.images"]) == (200, 30, 1)
    took = (ours.end_time_unix_nano - ours.start_time_unix_nano) / 1e9
    assert 0 < found["mcd.decode.seconds"] + found["mcd.infer.seconds"] < took
    assert re.fullmatch(f"00-{other.trace_id.hex()}-{other.span_id.hex()}-0[13]", new.headers["traceresponse"])
    assert attributes(other)["mcd.problem"] == "unsupported-image-format"
    assert other.status.code == Status.STATUS_CODE_UNSET  # a client error is none of the server
    assert f'"trace_id":"{TRACE}","span_id":"{ours.span_id.hex()}"' in server.log.read_text()


def test_requests_are_answered_without_the_collector(tmp_path):
    with serve(tmp_path / "home", MCD_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}/v1/traces") as server:
        assert {httpx.post(f"{server.url}/predict", content=BOOT).status_code for _ in range(20)} == {200}


def test_tracing_is_imported_only_where_it_is_configured():
    names = "'service.http.tracing', 'opentelemetry.exporter'"
    code = f"import sys, service.service; print(*(name in sys.modules for name in ({names})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
