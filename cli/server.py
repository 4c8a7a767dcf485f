"""Starts the server: BentoML takes the place of this process, so that process id and signals are the server's."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import service
from service.inference.artifacts import STORE_PREFIX

_SERVICE = "service.service:UncertaintyService"
_ROOT = Path(service.__file__).parent.parent
_PATHS = ("MCD_MODEL", "MCD_API_KEYS_FILE", "MCD_ADMIN_KEYS_FILE", "MCD_RECENT_FOLDER", "BENTOML_CONFIG")

# Idle connections stay open longer than clients and proxies keep theirs: were it shorter, a busy server could close one
# on which a request has just arrived.
TIMEOUTS = ("--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "30")


def serve_forever(host: str, port: int) -> None:
    """Replace this process by `bentoml serve` of the installed service; returns never.

    Args:
        host: IP address to listen on.
        port: TCP port to listen on.
    """
    words = [
        *(sys.executable, "-P", "-m", "bentoml", "serve", *TIMEOUTS, "--host", host, "--port", str(port)),
        *("--working-dir", str(_ROOT), _SERVICE),
    ]
    os.execve(sys.executable, words, server_environment(os.environ))  # noqa: S606 - no shell is meant


def server_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Name files and folders by absolute paths: workers run in the folder of the installed packages.

    There no other package `service` of the current folder can take the place of ours.
    """
    given = {name: environ[name].strip() for name in _PATHS if name in environ}
    paths = {name: value for name, value in given.items() if value and not value.startswith(STORE_PREFIX)}
    absolute = {name: str(Path(value).absolute()) for name, value in paths.items()}
    return {"BENTOML_DO_NOT_TRACK": "True"} | dict(environ) | absolute
