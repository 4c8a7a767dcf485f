"""Images where they are stored: each in a file of its own, or many in one file."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


class StoredImage(Protocol):
    """An image that is read when it is needed."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def identity(self) -> list[object]:
        """What differs from other images, and after the file changed, as JSON has it."""

    def read(self) -> bytes:
        """The image as a file that the service could get.

        Raises:
            ImagesError: what is stored is no image.
            OSError: the file can't be read.
        """


@dataclass(frozen=True)
class ImageFile:
    """A file with one image."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def identity(self) -> list[object]:
        """Path, size and time of the file."""
        return file_identity(self.path)

    def read(self) -> bytes:
        """The bytes of the file."""
        return self.path.read_bytes()


def file_identity(path: Path) -> list[object]:
    """Path, size and time of modification, which change with the contents of a file."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def as_png(pixels: np.ndarray) -> bytes:
    """Encode pixels without loss, so that they are prepared as the service prepares a file of them.

    Args:
        pixels: uint8, (H, W), (H, W, 3), or (H, W, 4) with transparency.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
