"""Images and labels in arrays: .npy, and IDX as MNIST has it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.adopt.errors import ImagesError
from training.adopt.stored_images import as_png, file_identity
from training.data import DataError, read_idx

_NPY, _IDX = ".npy", ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz")


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """One image of an array.

    Attributes:
        path: file of the array.
        array: uint8 or numbers in [0, 1], (N, H, W) or (N, H, W, C), on disk until it is read.
        index: of the image.
    """

    path: Path
    array: np.ndarray
    index: int

    @property
    def name(self) -> str:
        """Path and index."""
        return f"{self.path}, image {self.index}"

    def identity(self) -> list[object]:
        """Path, size and time of the file, and the index."""
        return [*file_identity(self.path), self.index]

    def read(self) -> bytes:
        """Encode the pixels.

        Raises:
            ImagesError: numbers that are not in [0, 1].
        """
        pixels = self.array[self.index]
        if pixels.dtype != np.uint8:
            if not ((pixels >= 0) & (pixels <= 1)).all():
                raise ImagesError(f"{self.name}: floating-point pixels must be in [0, 1]: divide them by their maximum")
            pixels = np.rint(pixels * np.float64(255)).astype(np.uint8)
        return as_png(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def is_array_file(path: Path) -> bool:
    """Whether the name of a file is that of an array."""
    return path.name.endswith((_NPY, *_IDX))


def array_images(path: Path, labels: Path | None) -> tuple[list[ArrayImage], list[int] | list[str]]:
    """Find the images of an array, and their labels.

    Args:
        path: .npy file of shape (N, H, W) or (N, H, W, C), uint8 or floating-point numbers in [0, 1]; or IDX file.
        labels: .npy or IDX file of N indices or names of classes; None for that which MNIST's file names have.

    Raises:
        ImagesError: a file can't be read, or has something else.
    """
    images = images_of_array(path)
    if labels is None:
        labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        if labels == path or not labels.is_file():
            raise ImagesError(f"{path}: name the file of its labels with --labels")
    classes_N = _read(labels, axes=1)
    if classes_N.ndim != 1 or classes_N.dtype.kind not in "iuU":
        raise ImagesError(
            f"{labels}: expected a label for each image, an index or name of its class, got {classes_N.dtype} of shape "
            f"{classes_N.shape}"
        )
    if len(classes_N) != len(images):
        raise ImagesError(f"{labels}: {len(classes_N)} labels, but {path} has {len(images)} images: one is for others")
    return images, classes_N.tolist()


def images_of_array(path: Path) -> list[ArrayImage]:
    """Find the images of an array; see `array_images`."""
    array = _read(path, axes=3)
    kinds = "uint8, or floating-point numbers in [0, 1], of shape (N, H, W) or (N, H, W, C) of 1, 3 or 4 channels"
    is_image = array.ndim == 3 or (array.ndim == 4 and array.shape[3] in {1, 3, 4})
    if not is_image or not (array.dtype == np.uint8 or array.dtype.kind == "f") or not array.size:
        raise ImagesError(f"{path}: expected images as {kinds}, got {array.dtype} of shape {array.shape}")
    return [ArrayImage(path, array, index) for index in range(len(array))]


def _read(path: Path, *, axes: int) -> np.ndarray:
    """Map an .npy file, or read an IDX file."""
    if not path.name.endswith(_NPY):
        try:
            return read_idx(path, axes)
        except DataError as error:
            raise ImagesError(str(error)) from error
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ImagesError(f"{path}: expected an .npy file of numbers, got one that can't be read ({error})") from error
