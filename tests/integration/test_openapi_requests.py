"""Requests that schemathesis makes from the service's own description."""

import os
import re
import subprocess
import sys

from server import ROOT

_EXAMPLES = os.environ.get("MCD_FUZZ_EXAMPLES", "10")  # of each operation
_LEAST = int(os.environ.get("MCD_FUZZ_LEAST", "100"))  # requests in all


def test_every_check_of_schemathesis_passes(server):
    """`make test-all` sends more requests, and `make fuzz` five thousand and more."""
    folder = ROOT / "tests" / "contract"
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml"), "run",
            f"{server.url}/docs.json", "--checks", "all", "--max-examples", _EXAMPLES,
            "--seed", "1", "--no-color",
        ],
        cwd=folder,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (generated,) = re.findall(r"(\d+) generated, \1 passed", done.stdout)
    assert int(generated) >= _LEAST
    assert "Unresolvable" not in done.stdout
    assert "Traceback" not in server.log.read_text()
