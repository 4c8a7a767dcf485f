"""A client of the application in this process, in place of one of a server, for two models."""

from collections.abc import Iterator

import httpx
import pytest
from application import client_of


@pytest.fixture(scope="module")
def client(served) -> Iterator[httpx.Client]:
    """With default settings but for the model."""
    with client_of(**served.settings) as opened:
        yield opened
