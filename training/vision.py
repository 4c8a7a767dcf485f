"""torchvision, made importable with a CPU-only torch.

The wheel on PyPI is built for CUDA torch. With a CPU-only torch its C++ extension can't be loaded, and the import fails
because two operators are not declared. Declaring them is enough for data sets and transforms; the operators themselves
(for detection) remain unavailable.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


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


if not _extension_loads():
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _operator in ("nms", "qnms"):
        _library.define(f"{_operator}{_SCHEMA}")

import torchvision  # noqa: E402 - after the declarations
from torchvision.transforms.v2 import functional  # noqa: E402

__all__ = ["functional", "torchvision"]
