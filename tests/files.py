"""Image and array files, as clients send them."""

import io

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_request(pixels_BHW: np.ndarray) -> dict:
    """What httpx needs to send it."""
    return {"content": npy(pixels_BHW), "headers": {"Content-Type": "application/x-npy"}}
