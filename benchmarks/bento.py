"""Compare the answers of the installed Bento with those of the source tree, byte for byte.

The Bento is installed from its own requirements only. Also measured: its size, and the time until either is ready.
`make bento-check` runs it.
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.servers import BENTOML, ROOT, SERVICE, RunningServer, run_server

IMAGES = [path.read_bytes() for path in sorted((ROOT / "docs" / "images").glob("*.png"))]
QUERIES = (
    "", "samples=2", "samples=100&seed=7", "samples=auto&tolerance=0.01", "method=moments",
    "samples=30&coverage=0.99&set_method=aps&max_risk=0.01", "calibrated=false&invert=yes",
    "samples=10&return_samples=true",
)  # fmt: skip
_STARTS = 3


def main() -> None:
    """Build, install, serve and compare; exit status 1 if an answer differs."""
    assert IMAGES
    with tempfile.TemporaryDirectory() as folder:
        environ = {"BENTOML_HOME": f"{folder}/home", "BENTOML_DO_NOT_TRACK": "True"}
        tag = _run(sys.executable, "-m", "bentoml", "build", "--output", "tag", ".", **environ)
        bento = Path(folder, "home", "bentos", *tag.strip().removeprefix("__tag__:").split(":"))
        environment = Path(folder, "environment")
        _run(sys.executable, "-m", "venv", str(environment))
        python = str(environment / "bin" / "python")
        requirements = bento / "env" / "python" / "requirements.txt"
        _run(python, "-m", "pip", "install", "--disable-pip-version-check", "-r", str(requirements))
        print(f"Bento {_megabytes(bento):.1f} MB, installed environment {_megabytes(environment):.0f} MB", flush=True)

        command = (*BENTOML, str(bento))  # outside the source tree, so that Python does not import from it
        serve = {
            "source": lambda: run_server(SERVICE),
            "Bento": lambda: run_server(command, python=python, folder=Path(folder)),
        }
        answers = {}
        for name, start in serve.items():
            with ExitStack() as stack:
                seconds, server = _timed(lambda start=start, stack=stack: stack.enter_context(start()))
                answers[name] = _answers(server.port)
            restarts = []
            for _ in range(_STARTS - 1):
                with ExitStack() as stack:
                    restarts.append(_timed(lambda start=start, stack=stack: stack.enter_context(start()))[0])
            print(
                f"{name}: ready after {seconds:.1f} s, then {', '.join(f'{one:.1f} s' for one in restarts)}", flush=True
            )
    differences = [question for question, answer in answers["source"].items() if answers["Bento"][question] != answer]
    print(f"{len(answers['source'])} questions, {len(differences)} answered differently")
    for image, query in differences:
        print(f"image {image}, {query!r}")
    sys.exit(1 if differences else 0)


def _run(*command: str, **environ: str) -> str:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environ, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _timed(start: Callable[[], RunningServer]) -> tuple[float, RunningServer]:
    begin = time.perf_counter()
    server = start()
    return time.perf_counter() - begin, server


def _answers(port: int) -> dict[tuple[int, str], bytes]:
    found = {}
    for number, image in enumerate(IMAGES):
        for query in QUERIES:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/predict?{query}", data=image)
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
                found[number, query] = response.read()
    return found


def _megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6


if __name__ == "__main__":
    main()
