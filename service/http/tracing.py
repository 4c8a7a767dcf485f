"""Spans of requests, for a collector that speaks OTLP; imported only where one is configured."""

from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from service import __version__
from service.http.request_context import RequestContext, parent_span

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

    def start(self, context: RequestContext) -> trace.Span:
        """Begin the span of a request; its context takes the ids."""
        parent = trace.set_span_in_context(trace.NonRecordingSpan(parent_span(context.headers)))
        span = self._tracer.start_span("request", context=parent, kind=trace.SpanKind.SERVER)
        found = span.get_span_context()
        context.join(found, f"{found.span_id:016x}")
        return span

    def end(self, span: trace.Span, context: RequestContext, *, method: str) -> None:
        """End it, named and described by OpenTelemetry's conventions for HTTP."""
        span.update_name(f"{method} {context.route}")
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "http.route": context.route,
            "http.response.status_code": context.status,
        }
        attributes |= {f"mcd.{name}": value for name, value in context.notes.items()}
        attributes |= {f"mcd.{stage}.seconds": seconds for stage, seconds in context.timings.seconds.items()}
        span.set_attributes(attributes)
        if context.status >= _SERVER_ERROR:
            span.set_status(trace.StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
