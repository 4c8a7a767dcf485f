"""How long the stages of an answer take."""

import time
from contextlib import AbstractContextManager
from types import TracebackType


class Timings:
    """Seconds that the stages of an answer took, by name; of a stage that came several times, all together.

    Attributes:
        request_id: of the request that is answered.
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
        took = time.perf_counter() - self._start
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + took
