"""How much work is taken on at once: the rest is refused at once, while there is time to go elsewhere."""

import asyncio
from types import TracebackType

from service.schemas.problems import Problem

_RETRY_SECONDS = 1


def overloaded(why: str) -> Problem:
    """Refuse for now."""
    return Problem("overloaded", f"{why}: try again later", headers={"Retry-After": str(_RETRY_SECONDS)})


class Admission:
    """Lets so many requests of a worker be in work, each for the time of an `async with`.

    Args:
        limit: how many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_work = 0

    def check(self) -> None:
        """Refuse a request before anything of it is read, if it would be one too many by now."""
        if self._in_work >= self._limit:
            raise overloaded(f"{self._limit} requests are in work")

    async def __aenter__(self) -> None:
        self.check()
        self._in_work += 1
        # Work runs in the event loop. Before it starts, all that has arrived meanwhile is counted, or refused.
        await asyncio.sleep(0)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_work -= 1
