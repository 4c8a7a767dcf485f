"""What several test files share: the real data, a real server, and the rule for what is missing."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import httpx
import numpy as np
import pytest
import rgb
import torch
from server import ROOT, Server, serve
from threadpoolctl import threadpool_limits
from two_models import Served

from model import load_artifact
from training.data import DataError, FashionMNIST, load_fashion_mnist
from training.ood import download_images, read_images

# The matrices are small and the cores few: several threads would mostly wait for each other.
torch.set_num_threads(1)
threadpool_limits(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the page's tests last: Playwright keeps an event loop running, in which no other can be started."""
    items.sort(key=lambda item: "page" in item.path.parts)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported; it would take a tenth of the unit tests' time."""
    gc.freeze()


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


@pytest.fixture(scope="session")
def mnist() -> np.ndarray:
    """The 10,000 test digits, uint8: beside the project where it is developed, else by torchvision."""
    beside = ROOT.parent / "shared" / "data" / "mnist" / "t10k-images-idx3-ubyte.gz"
    try:
        return read_images(beside) if beside.exists() else download_images("MNIST")
    except DataError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def rgb_folder(tmp_path_factory) -> Path:
    """The artifact of a small network of RGB images."""
    return rgb.save(tmp_path_factory.mktemp("rgb") / "artifact")


@pytest.fixture(scope="session")
def embedded(fashion) -> Served:
    artifact = load_artifact()
    return Served({}, artifact, artifact.network, fashion.test.images_B[:1000:5].numpy().copy(), ("masks", "moments"))


@pytest.fixture(scope="session")
def other(rgb_folder) -> Served:
    """RGB images, another size and another number of classes."""
    settings = {"MCD_MODEL": str(rgb_folder)}
    return Served(settings, load_artifact(rgb_folder), rgb.network(), rgb.noise(51, 200), ("masks",))


@pytest.fixture(scope="session", params=["embedded", "other"])
def served(request) -> Served:
    """Tests that don't need one of the two run for both."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """The embedded model behind two workers."""
    with serve(tmp_path_factory.mktemp("server") / "home", MCD_WORKERS="2") as running:
        yield running


@pytest.fixture(scope="session")
def client(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as opened:
        yield opened


@pytest.fixture(scope="session")
def rgb_server(tmp_path_factory, other) -> Iterator[Server]:
    """The RGB network behind one worker."""
    with serve(tmp_path_factory.mktemp("rgb-server") / "home", MCD_WORKERS="1", **other.settings) as running:
        yield running
