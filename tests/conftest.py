"""What several test files share: the real data, and the rule for what is missing."""

import os
from typing import NoReturn

import pytest

from training.data import DataError, FashionMNIST, load_fashion_mnist


def missing(what: str) -> NoReturn:
    """Skip where a real part is missing; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {what}")
    pytest.skip(what)


@pytest.fixture(scope="session")
def fashion() -> FashionMNIST:
    try:
        return load_fashion_mnist(download=False)
    except DataError as error:
        missing(str(error))
