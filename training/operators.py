"""The operators that torchvision expects its C++ extension to declare.

The wheel on PyPI is built for CUDA torch. With a CPU-only torch the extension can't be loaded, and the import fails
because two operators are not declared. Declaring them is enough for data sets, transforms and classifiers; the
operators themselves (for detection) remain unavailable.
"""

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def declare_operators() -> None:
    """Make torchvision importable, unless it is, or is not installed; to be called before it is imported."""
    if _extension_loads():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}{_SCHEMA}")
    _LIBRARIES.append(library)


_LIBRARIES: list[torch.library.Library] = []  # what they declare ends with them


def _extension_loads() -> bool:
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return True  # the import reports what is missing
    for extension in Path(found.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(extension)
        except OSError:
            return False
    return True
