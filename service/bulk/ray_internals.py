"""All undocumented parts of Ray Data's checkpoints that we use.

pyproject.toml bounds Ray's version; tests/unit/test_internals.py fails if one of these parts changes.
"""

from typing import Any

from pyarrow import fs
from ray.data.checkpoint import CheckpointConfig, CheckpointManager

# For each part, Ray Data writes a file of ids named like the part; it has the second ending until the part is complete.
_DONE, _PENDING = ".parquet", ".pending.parquet"


def committed_part(name: str) -> str | None:
    """Stem of the complete part that a checkpoint file belongs to; None for any other file."""
    return name.removesuffix(_DONE) if name.endswith(_DONE) and not is_pending(name) else None


def is_pending(name: str) -> bool:
    """Whether a checkpoint file belongs to an incomplete part."""
    return name.endswith(_PENDING)


def checkpoint_file(part: str) -> str:
    """Name of the checkpoint file of a part."""
    return f"{part}{_DONE}"


def checkpoint_config(path: str, filesystem: fs.FileSystem) -> CheckpointConfig:
    """Make Ray Data write checkpoints by the column "id", but not read them: our source skips images that are done."""
    return CheckpointConfig(
        "id",
        path,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=_FilteredAtTheSource,
    )


class _FilteredAtTheSource(CheckpointManager):
    """Reports to Ray Data that nothing is done; otherwise it would read all images again to filter them."""

    def load_checkpoint(self, *_: Any, **__: Any) -> tuple[None, int]:
        return None, 0
