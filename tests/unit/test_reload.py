"""Requests to reload that a worker follows, also one that is still starting."""

import asyncio
import math
from pathlib import Path
from queue import Queue

import pytest

from model import load_artifact
from service.inference.limits import ImageLimits
from service.monitoring.metrics import Metrics
from service.pipeline import Pipeline
from service.reload import ModelError, ReloadableModel, request_reload

SECONDS = 60.0


class Loads:
    """Loads the embedded model; a request to reload arrives during the first load.

    Args:
        folder: shared by the workers.
        refused: which load fails, counted from 1; 0 for none.
    """

    def __init__(self, folder: Path, *, refused: int = 0) -> None:
        self.folder, self.refused, self.count = folder, refused, 0
        self.started: Queue[int] = Queue()

    def __call__(self) -> Pipeline:
        self.count += 1
        self.started.put(self.count)
        pipeline = Pipeline(load_artifact(), ImageLimits(10**6, math.inf))
        if self.count == 1:
            request_reload(self.folder)
        if self.count == self.refused:
            raise ModelError("spoilt")
        return pipeline


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def follow_until(model: ReloadableModel, loads: Loads, count: int) -> None:
    """Follow requests until the model was loaded `count` times in all."""

    async def follow() -> None:
        following = asyncio.create_task(model.follow())
        while await asyncio.to_thread(loads.started.get, timeout=SECONDS) < count:
            pass
        following.cancel()

    asyncio.run(follow())  # waits for the thread of the last load


def test_a_request_while_a_worker_starts_is_not_missed(tmp_path):
    loads = Loads(tmp_path)
    model = ReloadableModel(loads, tmp_path, Metrics())
    first = model.pipeline
    follow_until(model, loads, 2)
    assert model.pipeline is not first


def test_a_refused_model_leaves_the_old_one_and_later_requests_are_followed(tmp_path):
    loads = Loads(tmp_path, refused=2)
    model = ReloadableModel(loads, tmp_path, Metrics())
    first = model.pipeline
    follow_until(model, loads, 2)
    assert model.pipeline is first
    request_reload(tmp_path)
    follow_until(model, loads, 3)
    assert model.pipeline is not first
