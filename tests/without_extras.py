"""The service and the command `mcd` where only the packages of service/requirements.txt can be imported.

Takes an image file. Prints a JSON object: for each subcommand its exit status, standard output and standard error.
"""

import json
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What a CUDA torch names and pins itself, so that the file leaves it out; and the project.
_ALSO = re.compile(r"cuda-|nvidia-|triton$|mcd$")


class _BaseOnly(MetaPathFinder):
    """Refuses modules that other distributions brought."""

    def __init__(self) -> None:
        pinned = re.findall(r"^([\w-]+)==", (ROOT / "service" / "requirements.txt").read_text(), re.MULTILINE)
        self._allowed = {_canonical(name) for name in pinned}
        self._brought_by = packages_distributions()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        del path, target
        names = {_canonical(distribution) for distribution in self._brought_by.get(name, [])}
        if names and not any(one in self._allowed or _ALSO.match(one) for one in names):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(image: str) -> None:
    sys.meta_path.insert(0, _BaseOnly())
    sys.path[0] = str(ROOT)

    from typer.testing import CliRunner  # noqa: PLC0415

    import service.service  # noqa: F401, PLC0415
    from cli.main import app  # noqa: PLC0415

    words = {"predict": [image], "bulk": ["--help"], "train": ["--help"], "evaluate": ["--help"]}
    ran = {name: CliRunner().invoke(app, [name, *rest], prog_name="mcd") for name, rest in words.items()}
    json.dump({name: (one.exit_code, one.stdout, one.stderr) for name, one in ran.items()}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
