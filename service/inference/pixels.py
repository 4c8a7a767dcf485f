"""The pixels that the network takes."""

from typing import Any

import numpy as np

SIDE = 28  # of an image that the network takes, in pixels

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
