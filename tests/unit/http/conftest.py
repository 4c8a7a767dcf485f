"""A client of the application in this process, in place of one of a server."""

from collections.abc import Iterator

import httpx
import pytest
from application import client_of


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """With default settings."""
    with client_of() as opened:
        yield opened
