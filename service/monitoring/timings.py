"""Durations of the stages of a request."""

import time
from contextlib import AbstractContextManager
from types import TracebackType


class Timings:
    """Measures the stages of a request; durations of a repeated stage are summed.

    Attributes:
        request_id: id of the request.
        seconds: duration of each stage, by name.
    """

    def __init__(self, request_id: str = "") -> None:
        self.request_id = request_id
        self.seconds: dict[str, float] = {}

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time the block."""
        return _Stage(self.seconds, name)


class _Stage(AbstractContextManager[None]):
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        duration = time.perf_counter() - self._start
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + duration
