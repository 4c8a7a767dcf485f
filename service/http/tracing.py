"""Spans of requests, exported to an OTLP collector; imported only if one is configured."""

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
_TIMEOUT_SECONDS = 3  # of an export to the collector, also at shutdown


class Tracing:
    """Records a span for each request, in the client's trace or a new one, and exports spans in the background.

    Args:
        endpoint: URL of the collector, such as http://localhost:4318/v1/traces.
        ratio: fraction of the requests without a trace that are traced.
    """

    def __init__(self, endpoint: str, *, ratio: float) -> None:
        resource = Resource.create({"service.name": "mcd", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(ratio)))
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_SECONDS))
        )
        self._tracer = self._provider.get_tracer("mcd", __version__)

    def start(self, context: RequestContext) -> trace.Span:
        """Start the span of a request, and store its ids in the request context."""
        parent = trace.set_span_in_context(trace.NonRecordingSpan(parent_span(context.headers)))
        span = self._tracer.start_span("request", context=parent, kind=trace.SpanKind.SERVER)
        span_context = span.get_span_context()
        context.join(span_context, f"{span_context.span_id:016x}")
        return span

    def end(self, span: trace.Span, context: RequestContext, *, method: str) -> None:
        """End the span, with name and attributes by OpenTelemetry's semantic conventions for HTTP."""
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
        """Export the remaining spans."""
        self._provider.shutdown()
