"""One request as logs, headers and traces describe it."""

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

CLIENT_GONE = 499  # the status of a request whose client did not wait for the answer

_KEY = "mcd.context"  # in the scope
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PROPAGATOR = TraceContextTextMapPropagator()

Headers = list[tuple[bytes, bytes]]


class RequestContext:
    """A request and its answer: who asked, in which trace, how long each stage took, and what the log shall say.

    Attributes:
        request_id: X-Request-ID if that is 1 to 128 plain characters, else a new one.
        method: in upper case; "other" for an unknown one.
        headers: of the request, names in lower case.
        route: name of the route that answers.
        status: of the answer; 499 until it is sent.
        timings: of the stages.
        seconds: from when it came in to when it ended.
        notes: further fields of the log line.
        trace_id: of the trace that the request belongs to, 32 hexadecimal digits; None for none.
        span_id: of this request's span in it, 16 hexadecimal digits; None for none.

    Args:
        scope: of the request; later parts find the context in it. A valid traceparent is propagated (W3C Trace
            Context).
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
        """The context of a request."""
        found: RequestContext = scope[_KEY]
        return found

    def join(self, span: SpanContext, span_id: str) -> None:
        """Take part in the trace of a span."""
        self.trace_id, self.span_id, self._flags = f"{span.trace_id:032x}", span_id, span.trace_flags

    def end(self) -> None:
        """Take the time that it took."""
        self.seconds = time.perf_counter() - self._start

    def answer_headers(self) -> Headers:
        """The headers that every answer has."""
        found = [(b"x-request-id", self.request_id.encode())]
        if self.timings.seconds:
            timing = ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in self.timings.seconds.items())
            found.append((b"server-timing", timing.encode()))
        if self.trace_id is not None:
            found.append((b"traceresponse", f"00-{self.trace_id}-{self.span_id}-{self._flags:02x}".encode()))
        return found

    def log(self) -> None:
        """Write one line: what was asked, in names out of fixed sets, and how it went; no contents."""
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
    """The span that the headers name as the parent; an invalid one if they name none."""
    carrier = {name: headers.get(name.encode(), b"").decode("latin-1") for name in _PROPAGATOR.fields}
    return get_current_span(_PROPAGATOR.extract(carrier)).get_span_context()
