"""Real servers for tests: started on a free port of 127.0.0.1, ended by pid."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parent.parent
_START_SECONDS = 300
_STOP_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, its supervisor's pid, its BENTOML_HOME and what it printed."""

    url: str
    pid: int
    home: Path
    log: Path

    @property
    def worker_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children() if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "_bentoml_impl" in str(process.cmdline())
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return False


def bentoml_command(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("bentoml")), *words]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment without settings of ours, each server with its own BentoML home."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MCD_", "PROMETHEUS_"))}
    return inherited | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"} | variables


@contextmanager
def serve(home: Path, target: str = ".", **variables: str) -> Iterator[Server]:
    """Serve the project (or a Bento) until the block ends."""
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            bentoml_command("serve", "--timeout-keep-alive", "75", "--host", "127.0.0.1", "--port", str(port), target),
            cwd=ROOT,
            env=environment(home, **variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", process.pid, home, log)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        _stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Server, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not get ready:\n{server.log.read_text()}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for worker in psutil.wait_procs(workers, timeout=_STOP_SECONDS)[1]:
        worker.kill()


def refused_start(home: Path, **variables: str) -> tuple[int, str]:
    """Try to serve what must not be served: exit status and what was printed."""
    completed = subprocess.run(
        bentoml_command("serve", "--host", "127.0.0.1", "--port", str(free_port()), "."),
        cwd=ROOT,
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=_START_SECONDS,
        check=False,
    )
    return completed.returncode, completed.stdout + completed.stderr
