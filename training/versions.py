"""The software that made an artifact."""

import platform

import numpy as np
import torch


def software_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that determine the results, and the kind of processor."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
