"""All private parts of BentoML and of its supervisor, circus, that we use.

pyproject.toml bounds their versions; tests/unit/test_internals.py fails if one of these parts changes.
"""

import signal
from collections.abc import Callable
from typing import Any

import bentoml
from bentoml._internal.container import BentoMLContainer  # type: ignore[attr-defined] # BentoML's configuration
from circus.sighandler import SysHandler
from starlette.types import ASGIApp


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


def pass_hangup_to_workers() -> None:
    """Make the supervisor pass SIGHUP on to the workers, which reload the model.

    By default it would restart them, which fails if the new model can't be served.
    """
    SysHandler.handle_hup = _pass_hangup


def _pass_hangup(handler: SysHandler) -> None:
    for watcher in handler.controller.arbiter.iter_watchers():
        for pid in watcher.processes:
            watcher.send_signal(pid, signal.SIGHUP)
