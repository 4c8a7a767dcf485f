"""The pixels of the network's input."""

from typing import Any

import numpy as np

SIDE = 28  # width and height of the network's input, in pixels

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
