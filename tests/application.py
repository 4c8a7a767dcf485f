"""The real application in this process, with chosen settings, called with or without a socket."""

import functools
import gc
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from unittest import mock

import httpx
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.types import ASGIApp

from service import service
from service.monitoring.logs import LOGGER
from service.settings import PREFIX, Settings

BASE_URL = "http://mcd.test"


@contextmanager
def service_settings(**variables: str) -> Iterator[None]:
    """Give the service settings by their variables' names, such as MCD_API_KEYS="key"; then undo all it has changed."""
    assert all(name.startswith(PREFIX) for name in variables)
    for made_once in vars(service).values():  # metrics, prediction log, model, tracing
        if isinstance(made_once, functools._lru_cache_wrapper):
            made_once.cache_clear()
    settings = Settings.from_mapping(variables)
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate, logging.getLogger("python_multipart").level
    with (
        mock.patch.object(service, "SETTINGS", settings),
        mock.patch.dict(uvicorn.config.HTTP_PROTOCOLS),
        mock.patch.object(gc, "freeze"),  # what an application leaves must be collected
    ):
        try:
            yield
        finally:
            LOGGER.handlers[:], LOGGER.level, LOGGER.propagate, logging.getLogger("python_multipart").level = before


@contextmanager
def application(**variables: str) -> Iterator[ASGIApp]:
    """Make the application of a worker as `bentoml serve` does, with a model, metrics and prediction log of its own.

    Nothing else in the tests knows how the service makes it.
    """
    with service_settings(**variables):
        yield service.UncertaintyService.to_asgi()


@contextmanager
def client_of(**variables: str) -> Iterator[httpx.Client]:
    """Open a client of an application with such settings; threads may share it, and are answered in one event loop."""
    with (
        application(**variables) as app,
        start_blocking_portal() as portal,
        httpx.Client(transport=_InProcess(app, portal), base_url=BASE_URL) as opened,
    ):
        yield opened


@contextmanager
def url_of(**variables: str) -> Iterator[str]:
    """Let uvicorn serve an application with such settings in a thread, on a socket of its own."""
    with application(**variables) as app, socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


class _InProcess(httpx.BaseTransport):
    """Calls an application in the event loop of a portal."""

    def __init__(self, app: ASGIApp, portal: BlockingPortal) -> None:
        self._transport = httpx.ASGITransport(app)
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._portal.call(self._send, request)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        sent = httpx.Request(
            request.method, request.url, headers=request.headers.raw, stream=_Chunks(request), extensions={}
        )
        response = await self._transport.handle_async_request(sent)
        content = b"".join([part async for part in response.stream])
        return httpx.Response(response.status_code, headers=response.headers.raw, content=content)


class _Chunks(httpx.AsyncByteStream):
    """The body of a request, in the parts that it was given in."""

    def __init__(self, request: httpx.Request) -> None:
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._request.stream:
            yield part
