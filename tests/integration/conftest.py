"""The servers of two models, for tests that run for both."""

from collections.abc import Iterator

import httpx
import pytest
from server import Server
from two_models import Served


@pytest.fixture(scope="session")
def served_server(request, served: Served) -> Server:
    """The server of the served model."""
    return request.getfixturevalue("rgb_server" if served.settings else "server")


@pytest.fixture(scope="session")
def served_client(served_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served_server.url, timeout=30) as opened:
        yield opened
