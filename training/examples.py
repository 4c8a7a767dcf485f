"""Example images of artifacts."""

import io

import numpy as np
from PIL import Image

from model.examples import Example


def make_example(name: str, pixels: np.ndarray) -> Example:
    """Make an example of pixels, uint8 of shape (H, W) or (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return Example(name, file.getvalue())
