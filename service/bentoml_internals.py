"""What we use of BentoML and of its supervisor, circus, that is not public: all of it stands here.

pyproject.toml bounds their versions; tests/unit/test_internals.py fails when one of these changes.
"""

import signal
from collections.abc import Callable
from typing import Any

import bentoml
from bentoml._internal.container import BentoMLContainer  # type: ignore[attr-defined] # what its configuration says
from circus.sighandler import SysHandler
from starlette.types import ASGIApp


def service_behind(make_application: Callable[[ASGIApp], ASGIApp]) -> type[bentoml.Service[Any]]:
    """Make a class of BentoML services whose application stands behind another one.

    Args:
        make_application: makes the outer application of a worker from BentoML's.
    """

    class ServiceBehind(bentoml.Service[Any]):  # type: ignore[misc] # BentoML exports it untyped
        def to_asgi(self, is_main: bool = True) -> ASGIApp:  # noqa: FBT001, FBT002 - BentoML's signature
            return make_application(super().to_asgi(is_main))

    return ServiceBehind


def bentoml_cors_options() -> dict[str, Any]:
    """Options of BentoML's own CORS setting, which has no effect on routes before its application."""
    is_enabled = BentoMLContainer.http.cors.enabled.get()
    return dict(BentoMLContainer.access_control_options.get()) if is_enabled else {}


def pass_hangup_to_workers() -> None:
    """Let the supervisor's SIGHUP reach the workers: its own answer, to restart them, would need a good model."""
    SysHandler.handle_hup = _pass_hangup


def _pass_hangup(handler: SysHandler) -> None:
    for watcher in handler.controller.arbiter.iter_watchers():
        for pid in watcher.processes:
            watcher.send_signal(pid, signal.SIGHUP)
