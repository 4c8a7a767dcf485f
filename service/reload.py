"""The model that answers, and how another takes its place while requests go on."""

import asyncio
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from service.monitoring.logs import LOGGER
from service.monitoring.metrics import Metrics
from service.pipeline import Pipeline

_SECONDS = 0.5  # until all workers have noticed


class ModelError(ValueError):
    """A model that can't be served; one line says why."""


class ReloadableModel:
    """Holds the pipeline that answers. A request takes it once, so that it never sees two.

    Args:
        load: makes a pipeline of the model as it is on disk now; raises `ModelError`.
        folder: that all workers of the server share; in it one tells the others of a new model.
        metrics: that name the model.
    """

    def __init__(self, load: Callable[[], Pipeline], folder: Path | None, metrics: Metrics) -> None:
        self._load, self._metrics = load, metrics
        self._token = None if folder is None else folder / "mcd-reload"
        self._seen = self._stamp()
        self._loading = threading.Lock()
        self._take(load())

    def reload(self, *, tell: bool) -> str:
        """Take the model that is on disk now, or keep the old one if it can't be served.

        Args:
            tell: the other workers too.

        Returns:
            The identity of the model that answers from now on.

        Raises:
            ModelError: the old one goes on answering.
        """
        with self._loading:
            try:
                self._take(self._load())
            except ModelError as error:
                LOGGER.error("model refused", extra={"fields": {"reason": str(error)}})
                raise
            LOGGER.warning("model loaded", extra={"fields": {"model": self.pipeline.model}})
            if tell and self._token is not None:
                self._token.write_text(self.pipeline.model)
                self._seen = self._stamp()
            return self.pipeline.model

    def _take(self, pipeline: Pipeline) -> None:
        self._metrics.model(pipeline.model, pipeline.recipe, pipeline.classes)
        self.pipeline = pipeline

    async def follow(self) -> None:
        """Reload whenever another worker did, or at SIGHUP, until it is cancelled."""
        loop, hung_up = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, hung_up.set)
        while True:
            try:
                await asyncio.wait_for(hung_up.wait(), _SECONDS)
            except TimeoutError:
                stamp = self._stamp()
                if stamp == self._seen:
                    continue
                self._seen = stamp
            hung_up.clear()
            await asyncio.to_thread(self._try)

    def _try(self) -> None:
        try:
            self.reload(tell=False)
        except ModelError:
            return  # told, and the old one answers
        except Exception:  # noqa: BLE001 - whatever it is, the next reload must find somebody who follows
            LOGGER.exception("reload failed")

    def _stamp(self) -> int:
        try:
            return 0 if self._token is None else self._token.stat().st_mtime_ns
        except FileNotFoundError:
            return 0
