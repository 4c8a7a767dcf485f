"""Results that are kept until an adoption is complete."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from model.artifact import write_atomically

Array = np.ndarray


def load_or_compute(path: Path, compute: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
    """Read arrays that an earlier run saved, or compute and save them.

    Args:
        path: of the .npz file; its folder is created if missing.
        compute: computes the arrays, by name.
    """
    if not path.exists():
        buffer = io.BytesIO()
        np.savez(buffer, **compute())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
