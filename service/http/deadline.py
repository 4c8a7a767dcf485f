"""Deadlines of long work, which also ends when its client has gone."""

import asyncio
import time
from types import TracebackType
from typing import Self

from starlette.requests import ClientDisconnect, Request

from service.schemas.problems import Problem


class Deadline:
    """While it is open, `check` ends work in another thread that need not go on.

    Args:
        request: whose body has been read.
        seconds: until the deadline, from now on.
    """

    def __init__(self, request: Request, *, seconds: float) -> None:
        self._request = request
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._gone = False

    def check(self) -> None:
        """End the work if it is too late.

        Raises:
            ClientDisconnect: nobody waits for the answer.
            Problem: 504 when the deadline has passed.
        """
        if self._gone:
            raise ClientDisconnect
        if time.monotonic() > self._deadline:
            raise Problem("deadline-exceeded", f"the answer took longer than {self._seconds:g} seconds")

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._wait_for_disconnect())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()

    async def _wait_for_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
