"""The context of a request: the data for its log line, response headers and trace."""

import logging
import re
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Any

from opentelemetry.trace import SpanContext, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from service.monitoring.logs import LOGGER
from service.monitoring.timings import Timings

CLIENT_GONE = 499  # status of a request whose client disconnected before the answer

_KEY = "mcd.context"  # in the ASGI scope
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PROPAGATOR = TraceContextTextMapPropagator()

Headers = list[tuple[bytes, bytes]]


class RequestContext:
    """Context of one request: its id, route, trace, status, timings, and further fields of its log line.

    Attributes:
        request_id: the X-Request-ID header if it is 1 to 128 plain characters, else a new id.
        method: the method in upper case; "other" for an unknown method.
        headers: the request headers, names in lower case.
        route: name of the route that answers.
        status: status of the answer; 499 until the answer starts.
        timings: durations of the stages.
        seconds: total duration of the request.
        notes: further fields of the log line.
        trace_id: id of the request's trace, 32 hexadecimal digits; None without a trace.
        span_id: id of the request's span in the trace, 16 hexadecimal digits; None without a trace.

    Args:
        scope: ASGI scope of the request; `RequestContext.of` finds the context in it. A valid traceparent is propagated
            (W3C Trace Context).
    """

    def __init__(self, scope: Scope) -> None:
        scope[_KEY] = self
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        sent = self.headers.get(b"x-request-id", b"")
        self.request_id = sent.decode() if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        self.method = scope["method"] if scope["method"] in _METHODS else "other"
        self.route, self.status = "", CLIENT_GONE
        self.timings = Timings()
        self.seconds = 0.0
        self.notes: dict[str, Any] = {}
        self.trace_id: str | None = None
        self.span_id: str | None = None
        self._flags = 0
        self._start = time.perf_counter()
        if b"traceparent" in self.headers:
            parent = parent_span(self.headers)
            if parent.is_valid:
                self.join(parent, secrets.token_hex(8))

    @staticmethod
    def of(scope: Scope) -> "RequestContext":
        """The context of the request with this scope."""
        context: RequestContext = scope[_KEY]
        return context

    def join(self, span: SpanContext, span_id: str) -> None:
        """Use the trace id and flags of a span, and a span id."""
        self.trace_id, self.span_id, self._flags = f"{span.trace_id:032x}", span_id, span.trace_flags

    def end(self) -> None:
        """Record the total duration."""
        self.seconds = time.perf_counter() - self._start

    def answer_headers(self) -> Headers:
        """The headers of every answer: request id, timings and trace."""
        headers = [(b"x-request-id", self.request_id.encode())]
        if self.timings.seconds:
            timing = ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in self.timings.seconds.items())
            headers.append((b"server-timing", timing.encode()))
        if self.trace_id is not None:
            headers.append((b"traceresponse", f"00-{self.trace_id}-{self.span_id}-{self._flags:02x}".encode()))
        return headers

    def log(self) -> None:
        """Write the log line: method and route from fixed sets, status, duration and notes, but no contents."""
        if LOGGER.isEnabledFor(logging.INFO):
            trace = {} if self.trace_id is None else {"trace_id": self.trace_id, "span_id": self.span_id}
            answer = {
                "method": self.method,
                "route": self.route,
                "status": self.status,
                "seconds": round(self.seconds, 6),
            }
            LOGGER.info("request", extra={"fields": {"request_id": self.request_id, **trace, **answer, **self.notes}})


def parent_span(headers: Mapping[bytes, bytes]) -> SpanContext:
    """The parent span named by the traceparent header; an invalid span if there is none."""
    carrier = {name: headers.get(name.encode(), b"").decode("latin-1") for name in _PROPAGATOR.fields}
    return get_current_span(_PROPAGATOR.extract(carrier)).get_span_context()
