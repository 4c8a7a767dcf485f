"""All private parts of BentoML and of its supervisor, circus, that we use.

pyproject.toml bounds their versions; tests/unit/test_internals.py fails if one of these parts changes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.container import BentoMLContainer  # type: ignore[attr-defined] # BentoML's configuration
from circus.sighandler import SysHandler
from starlette.types import ASGIApp

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # environment variable of workers: a folder that BentoML makes for a server


def service_behind(make_application: Callable[[ASGIApp], ASGIApp]) -> type[bentoml.Service[Any]]:
    """Make a class of BentoML services whose application is wrapped by ours.

    Args:
        make_application: makes a worker's outer application from BentoML's.
    """

    class ServiceBehind(bentoml.Service[Any]):  # type: ignore[misc] # BentoML exports it untyped
        def to_asgi(self, is_main: bool = True) -> ASGIApp:  # noqa: FBT001, FBT002 - BentoML's signature
            return make_application(super().to_asgi(is_main))

    return ServiceBehind


def bentoml_cors_options() -> dict[str, Any]:
    """CORS options from BentoML's own configuration, which BentoML applies to its own routes only."""
    is_enabled = BentoMLContainer.http.cors.enabled.get()
    return dict(BentoMLContainer.access_control_options.get()) if is_enabled else {}


def at_hangup(act: Callable[[Path], None]) -> None:
    """Make the supervisor call `act` at SIGHUP, with the folder that its workers share.

    By default it would restart them, which fails if the new model can't be served. It does not pass the signal on: that
    would end a worker that is still starting.
    """

    def handle(handler: SysHandler) -> None:
        for folder in {watcher.env[SHARED_FOLDER] for watcher in handler.controller.arbiter.iter_watchers()}:
            act(Path(folder))

    SysHandler.handle_hup = handle
