"""`mcd serve` as it is installed, from a folder that is not the project's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from server import ROOT, environment, free_port

SNEAKER = ROOT / "model" / "pretrained" / "examples" / "6.png"
MCD = Path(sys.executable).with_name("mcd")


@contextmanager
def served(folder: Path, port: int, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `mcd serve` in a folder until it is ready."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [MCD, "serve", "--port", str(port)],
            cwd=folder,
            # This checkout, also where another one is installed.
            env=environment(folder / "home", PYTHONPATH=str(ROOT), **variables),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(process, port)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail("mcd serve did not get ready")


def test_mcd_serve_answers_from_another_folder_and_ends_on_sigterm(tmp_path):
    shutil.copytree(ROOT / "model" / "pretrained", tmp_path / "artifact")
    decoy = tmp_path / "service" / "__init__.py"
    decoy.parent.mkdir()
    decoy.write_text("raise RuntimeError('the package of the current folder')")
    port = free_port()
    with served(tmp_path, port, MCD_MODEL="artifact") as process:
        answered = httpx.post(
            f"http://127.0.0.1:{port}/predict",
            params={"samples": 30, "seed": 4},
            headers={"Content-Type": "image/png"},
            content=SNEAKER.read_bytes(),
        ).raise_for_status()
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert workers
        assert not psutil.wait_procs(workers, timeout=20)[1]
    printed = subprocess.run(
        [MCD, "predict", SNEAKER, "--samples", "30", "--seed", "4", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    ).stdout
    assert json.loads(printed) == {"image": str(SNEAKER)} | answered.json()
