"""Deadlines of long work, which also stops when its client disconnects."""

import asyncio
import time
from types import TracebackType
from typing import Self

from starlette.requests import ClientDisconnect, Request

from service.schemas.problems import Problem


class Deadline:
    """Stops work in another thread by `check`, after the deadline or when the client has disconnected.

    Args:
        request: a request whose body has been read.
        seconds: time from now to the deadline.
    """

    def __init__(self, request: Request, *, seconds: float) -> None:
        self._request = request
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._is_disconnected = False

    def check(self) -> None:
        """Stop the work if its answer is no longer needed.

        Raises:
            ClientDisconnect: the client has disconnected.
            Problem: 504, the deadline has passed.
        """
        if self._is_disconnected:
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
        self._is_disconnected = True
