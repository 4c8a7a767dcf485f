"""The pixels of the network's input."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def encoded_png(pixels: Pixels) -> str:
    """Encode pixels, (H, W) or (H, W, 3), as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
