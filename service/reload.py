"""The model that answers requests, and its replacement while requests are in progress."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from service.monitoring.logs import LOGGER
from service.monitoring.metrics import Metrics
from service.pipeline import Pipeline

_POLL_SECONDS = 0.5  # interval at which a worker looks for a request to reload
_REQUEST = "mcd-reload"  # file whose modification time is that of the last request


def request_reload(folder: Path) -> None:
    """Make all workers of a server reload, also those that are still starting.

    Args:
        folder: shared by the workers.
    """
    (folder / _REQUEST).touch()


class ModelError(ValueError):
    """A model that can't be served; the message has the reason in one line."""


class ReloadableModel:
    """Holds the current pipeline. A request reads it once, so that one model answers all of the request.

    Args:
        load: makes a pipeline from the model that is now on disk; raises `ModelError`.
        folder: folder shared by all workers of the server, for requests to reload; None for one worker.
        metrics: metrics that name the model.

    Attributes:
        pipeline: the current pipeline.
    """

    def __init__(self, load: Callable[[], Pipeline], folder: Path | None, metrics: Metrics) -> None:
        self._load, self._metrics = load, metrics
        self._folder = folder
        self._last_seen = self._last_request()  # before the model is read, so that no later request is missed
        self._lock = threading.Lock()
        self._use(load())

    def reload(self, *, notify: bool) -> str:
        """Switch to the model that is now on disk, or keep the current one if it can't be served.

        Args:
            notify: whether to make the other workers reload, too.

        Returns:
            The identity of the model that is now in use.

        Raises:
            ModelError: the new model can't be served; the previous one stays in use.
        """
        with self._lock:
            try:
                self._use(self._load())
            except ModelError as error:
                LOGGER.error("model refused", extra={"fields": {"reason": str(error)}})
                raise
            LOGGER.warning("model loaded", extra={"fields": {"model": self.pipeline.model}})
            if notify and self._folder is not None:
                request_reload(self._folder)
                self._last_seen = self._last_request()
            return self.pipeline.model

    def _use(self, pipeline: Pipeline) -> None:
        self._metrics.model(pipeline.model, pipeline.recipe, pipeline.classes)
        pipeline.coverage.begin()
        self.pipeline = pipeline

    async def follow(self) -> None:
        """Reload when another worker or the supervisor requests it, until it is cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            last_request = self._last_request()
            if last_request != self._last_seen:
                self._last_seen = last_request
                await asyncio.to_thread(self._try_reload)

    def _try_reload(self) -> None:
        try:
            self.reload(notify=False)
        except ModelError:
            return  # logged by `reload`; the previous model stays in use
        except Exception:  # noqa: BLE001 - `follow` must survive any error, for the next reload
            LOGGER.exception("reload failed")

    def _last_request(self) -> int:
        """Time of the last request to reload, in nanoseconds; 0 if there was none."""
        try:
            return 0 if self._folder is None else (self._folder / _REQUEST).stat().st_mtime_ns
        except FileNotFoundError:
            return 0
