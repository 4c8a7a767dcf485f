"""Spans of requests, for a collector that speaks OTLP; only where one is configured is any of it imported."""

from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__
from service.http.request_context import RequestContext

_SERVER_ERROR = 500
_SECONDS = 3  # that a worker waits for its collector, at its end at the latest


class Tracing:
    """Makes a span of each request, in the trace of the client or a new one, and sends them in the background.

    Args:
        endpoint: URL of the collector that takes traces, such as http://localhost:4318/v1/traces.
        ratio: which part of the requests is traced that belong to no trace yet.
    """

    def __init__(self, endpoint: str, *, ratio: float) -> None:
        resource = Resource.create({"service.name": "mcd", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(ratio)))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_SECONDS)))
        self._tracer = self._provider.get_tracer("mcd", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, context: RequestContext) -> Span:
        """Begin the span of a request; the context takes its ids."""
        sent = {name: context.sent.get(name.encode(), b"").decode("latin-1") for name in self._propagator.fields}
        span = self._tracer.start_span("request", context=self._propagator.extract(sent), kind=SpanKind.SERVER)
        found = span.get_span_context()
        context.join(f"{found.trace_id:032x}", f"{found.span_id:016x}", f"{found.trace_flags:02x}")
        return span

    def end(self, span: Span, context: RequestContext, *, method: str, route: str, status: int) -> None:
        """End it, named and told of in OpenTelemetry's conventions for HTTP."""
        span.update_name(f"{method} {route}")
        told: dict[str, Any] = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        told |= {f"mcd.{name}": value for name, value in context.notes.items()}
        told |= {f"mcd.{stage}.seconds": seconds for stage, seconds in context.seconds.items()}
        span.set_attributes(told)
        if status >= _SERVER_ERROR:
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
