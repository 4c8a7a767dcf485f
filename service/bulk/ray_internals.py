"""What we use of Ray Data's checkpoints that is not documented: all of it stands here.

pyproject.toml bounds Ray's version; tests/unit/test_internals.py fails when one of these changes.
"""

from typing import Any

from pyarrow import fs
from ray.data.checkpoint import CheckpointConfig, CheckpointManager

# Ray Data writes a file of ids for each part that is whole, with the part's name; before that it has this ending.
_DONE, _PENDING = ".parquet", ".pending.parquet"


def committed_part(name: str) -> str | None:
    """How the name of the part begins that a checkpoint file says is whole; None for another file."""
    return name.removesuffix(_DONE) if name.endswith(_DONE) and not is_pending(name) else None


def is_pending(name: str) -> bool:
    """Whether a checkpoint file is of a part that was not finished."""
    return name.endswith(_PENDING)


def checkpoint_file(part: str) -> str:
    """Name of the file with the ids of a part."""
    return f"{part}{_DONE}"


def checkpoint_config(path: str, filesystem: fs.FileSystem) -> CheckpointConfig:
    """Let Ray Data write checkpoints, by the column "id", and read none: what is done is left out at the source."""
    return CheckpointConfig(
        "id",
        path,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=_FilteredAtTheSource,
    )


class _FilteredAtTheSource(CheckpointManager):
    """Tells Ray Data that nothing is done, so that it doesn't read everything again in order to drop it."""

    def load_checkpoint(self, *_: Any, **__: Any) -> tuple[None, int]:
        return None, 0
