"""torchvision, made importable with a CPU-only torch."""

from training.operators import declare_operators

declare_operators()

import torchvision  # noqa: E402 - after the declarations
from torchvision.transforms.v2 import functional  # noqa: E402

__all__ = ["functional", "torchvision"]
