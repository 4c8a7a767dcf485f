"""Servers for the benchmarks, on free ports of 127.0.0.1; each is stopped by its pid."""

import asyncio
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
START_SECONDS = 60
BENTOML = ("-m", "bentoml", "serve", "--timeout-keep-alive", "75", "--host", "127.0.0.1", "--port", "{port}")
SERVICE = (*BENTOML, ".")


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class RunningServer:
    """A running server: its port, and the process that was started."""

    port: int
    pid: int

    def memory(self) -> int:
        """Resident bytes of the processes that it started itself; Linux."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        statuses = [Path(f"/proc/{child}/status").read_text() for child in children]
        return sum(int(status.partition("VmRSS:")[2].split()[0]) * 1024 for status in statuses)


@contextmanager
def run_server(
    command: Sequence[str],
    *,
    ready: str = "/readyz",
    python: str = sys.executable,
    folder: Path = ROOT,
    **environ: str,
) -> Iterator[RunningServer]:
    """Run a server by a Python in a folder, "{port}" being its port; yielded once a GET of `ready` is answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home, (Path(home) / "log").open("wb") as log:
        process = subprocess.Popen(
            [python, *(word.format(port=port) for word in command)],
            cwd=folder,
            env=os.environ | {"BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"} | environ,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(port, ready, process, Path(home) / "log")
            yield RunningServer(port, process.pid)
        finally:
            process.terminate()
            process.wait()


def _wait(port: int, ready: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", ready)
            if connection.getresponse().status < http.client.INTERNAL_SERVER_ERROR:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise RuntimeError(f"the service did not get ready:\n{log.read_text()}")


async def send_request(connection: Connection, request: bytes) -> int:
    """Send a request, read the answer, return its status."""
    reader, writer = connection
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))
    return int(head.split(b" ", 2)[1])
