"""How much work a worker accepts at once. It refuses the rest immediately, so that clients can try another server."""

import asyncio
from types import TracebackType

from service.schemas.problems import Problem

_RETRY_SECONDS = 1


def overloaded(reason: str) -> Problem:
    """Refuse a request for now; the client may retry."""
    return Problem("overloaded", f"{reason}: try again later", headers={"Retry-After": str(_RETRY_SECONDS)})


class Admission:
    """Allows at most `limit` requests of a worker at once, each for the duration of an `async with`.

    Args:
        limit: maximum number of requests in progress.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_progress = 0

    def check(self) -> None:
        """Refuse a request before its body is read, if the limit is reached.

        Raises:
            Problem: 503, the limit is reached.
        """
        if self._in_progress >= self._limit:
            raise overloaded(f"{self._limit} requests are in progress")

    async def __aenter__(self) -> None:
        self.check()
        self._in_progress += 1
        # Work runs in the event loop: first let requests that arrived meanwhile be counted or refused.
        await asyncio.sleep(0)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_progress -= 1
