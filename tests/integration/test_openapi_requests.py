"""Requests that schemathesis makes from the service's own description."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from server import ROOT, Server

_EXAMPLES = int(os.environ.get("MCD_FUZZ_EXAMPLES", "10"))  # of each operation
_LEAST = int(os.environ.get("MCD_FUZZ_LEAST", "100"))  # requests in all
_OF_IMAGES = ["--phases", "examples,fuzzing", "--include-path-regex", "/(predict|predict_batch|rank|infer)$"]


def test_every_check_of_schemathesis_passes(server, embedded):
    """`make test-all` sends more requests, and `make fuzz` five thousand and more."""
    assert checked(server, embedded.artifact.input.pixel_shape, _EXAMPLES) >= _LEAST


def test_operations_of_images_pass_for_another_network(rgb_server, other):
    """A fifth of the requests: most of what is checked doesn't depend on the network."""
    assert checked(rgb_server, other.artifact.input.pixel_shape, max(_EXAMPLES // 5, 10), *_OF_IMAGES) >= 50


def checked(server: Server, shape: Sequence[int], examples: int, *options: str) -> int:
    """Send requests, whose .npy images have a shape, and check the answers: the number of requests."""
    folder = ROOT / "tests" / "contract"
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml"), "run",
            f"{server.url}/docs.json", "--checks", "all", "--max-examples", str(examples), "--seed", "1", "--no-color",
            *options,
        ],
        cwd=folder,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PIXEL_SHAPE": json.dumps(shape)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Unresolvable" not in done.stdout
    assert "Traceback" not in server.log.read_text()
    (generated,) = re.findall(r"(\d+) generated, \1 passed", done.stdout)
    return int(generated)
