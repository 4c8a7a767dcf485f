"""One request as logs, headers and traces tell of it."""

import logging
import re
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Any

from service.monitoring.logs import LOGGER
from service.monitoring.timings import Timings

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

Headers = list[tuple[bytes, bytes]]


class RequestContext(Timings):
    """A request and its answer: who asked, in which trace, how long each stage took, and what the log shall tell.

    Attributes:
        sent: the request's headers.
        notes: what else the log shall tell.

    Args:
        headers: of the request. X-Request-ID is taken if it is 1 to 128 plain characters, else one is made; the trace
            of a valid traceparent is gone on with (W3C Trace Context).
    """

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"x-request-id", b"")
        super().__init__(given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        self.sent = headers
        self._start = time.perf_counter()
        self.trace_id: str | None
        self.span_id: str | None
        self.trace_id, self.span_id, self._flags = _trace(headers.get(b"traceparent", b""))
        self.notes: dict[str, Any] = {}

    def join(self, trace_id: str, span_id: str, flags: str) -> None:
        """Be a part of this trace."""
        self.trace_id, self.span_id, self._flags = trace_id, span_id, flags

    @property
    def age(self) -> float:
        """Seconds since it came in."""
        return time.perf_counter() - self._start

    def headers(self) -> Headers:
        """What every answer tells of its request."""
        found = [(b"x-request-id", self.request_id.encode())]
        if self.seconds:
            timing = ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in self.seconds.items())
            found.append((b"server-timing", timing.encode()))
        if self.trace_id is not None:
            found.append((b"traceresponse", f"00-{self.trace_id}-{self.span_id}-{self._flags}".encode()))
        return found

    def log(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Write one line: what was asked, in names out of fixed sets, and how it went; no contents."""
        if LOGGER.isEnabledFor(logging.INFO):
            traced = {} if self.trace_id is None else {"trace_id": self.trace_id, "span_id": self.span_id}
            told = {"request_id": self.request_id, **traced, "method": method, "route": route, "status": status}
            LOGGER.info("request", extra={"fields": told | {"seconds": round(seconds, 6)} | self.notes})


def _trace(traceparent: bytes) -> tuple[str | None, str | None, str]:
    """Trace id, an id of our own for this span, and flags; of a traceparent that is not valid, none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None, None, "00"
    version, trace_id, parent_id, flags, more = found.groups()
    is_known = version != b"ff" and (version != b"00" or more is None)
    if not is_known or not trace_id.strip(b"0") or not parent_id.strip(b"0"):
        return None, None, "00"
    return trace_id.decode(), secrets.token_hex(8), flags.decode()
