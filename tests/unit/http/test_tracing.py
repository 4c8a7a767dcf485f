"""Which requests are traced; that spans reach a collector is seen in tests/e2e/test_tracing.py."""

import pytest
from application import client_of
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from server import ROOT

from service.http import tracing

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ENDPOINT = "http://127.0.0.1:9/v1/traces"


@pytest.fixture
def spans(monkeypatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "BatchSpanProcessor", lambda _: SimpleSpanProcessor(exporter))
    return exporter


def test_ratio_zero_traces_only_requests_with_a_sampled_parent(spans):
    with client_of(MCD_OTLP_ENDPOINT=ENDPOINT, MCD_TRACED_RATIO="0") as client:
        for flags in ("00", "01"):
            client.post("/predict", content=BOOT, headers={"traceparent": f"00-{TRACE}-{PARENT}-{flags}"})
        client.post("/predict", content=BOOT)
    (span,) = spans.get_finished_spans()
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)


def test_the_log_names_trace_and_span(spans, capsys):
    with client_of(MCD_OTLP_ENDPOINT=ENDPOINT) as client:
        client.post("/predict", content=BOOT)
    (span,) = spans.get_finished_spans()
    ids = f'"trace_id":"{span.context.trace_id:032x}","span_id":"{span.context.span_id:016x}"'
    assert ids in capsys.readouterr().out
