"""Out-of-distribution images."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from training.data import DOWNLOAD_ERRORS, DataError, cache_folder

Array = np.ndarray

SIDE = 28
DOWNLOADS = ("MNIST", "KMNIST", "EMNIST")
_SEED = 0
_GREYS = 5  # difference of grey levels between blank images


def synthetic_images(test_BHW: Array) -> dict[str, Array]:
    """Make uniform noise, test images with permuted pixels, inverted test images, and blank images.

    Args:
        test_BHW: uint8 images (B, 28, 28).
    """
    rng = np.random.default_rng(_SEED)
    order = rng.permutation(SIDE * SIDE)
    greys = np.arange(0, 256, _GREYS, dtype=np.uint8)
    return {
        "noise": rng.integers(0, 256, test_BHW.shape, dtype=np.uint8),
        "permuted pixels": test_BHW.reshape(len(test_BHW), -1)[:, order].reshape(test_BHW.shape),
        "inverted": 255 - test_BHW,
        "blank": np.broadcast_to(greys[:, None, None], (len(greys), SIDE, SIDE)).copy(),
    }


def download_images(name: str) -> Array:
    """Load the test images (B, 28, 28) of one of `DOWNLOADS` from the cache, or download them; EMNIST: letters.

    Raises:
        DataError: the download failed.
    """
    from training.vision import torchvision  # noqa: PLC0415 - slow to import, and rarely needed

    options = {"split": "letters"} if name == "EMNIST" else {}
    try:
        found = getattr(torchvision.datasets, name)(str(cache_folder()), train=False, download=True, **options)
    except DOWNLOAD_ERRORS as error:
        raise DataError(f"{name}: can't be downloaded ({' '.join(str(error).split())})") from error
    images_BHW: Array = found.data.numpy()
    return images_BHW.transpose(0, 2, 1) if name == "EMNIST" else images_BHW  # EMNIST's files store columns as rows


def read_images(path: Path) -> Array:
    """Read uint8 images (B, 28, 28), light on dark: an IDX file, gzipped or not, an .npy file, or a folder of images.

    Raises:
        DataError: the path has no valid images.
    """
    try:
        images_BHW = _read_folder(path) if path.is_dir() else _read_file(path)
    except (OSError, EOFError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: can't be read as images ({error})") from error
    if (
        images_BHW.ndim != 3
        or images_BHW.shape[1:] != (SIDE, SIDE)
        or images_BHW.dtype != np.uint8
        or not len(images_BHW)
    ):
        raise DataError(
            f"{path}: expected uint8 images of shape (B, {SIDE}, {SIDE}), got {images_BHW.dtype} of {images_BHW.shape}"
        )
    return images_BHW


def _read_file(path: Path) -> Array:
    if path.suffix == ".npy":
        loaded: Array = np.load(path, allow_pickle=False)
        return loaded
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    axes = data[3] if data[:3] == b"\x00\x00\x08" else 0
    if axes != 3:
        raise ValueError("expected an IDX file of bytes with three axes")
    shape = np.frombuffer(data, dtype=">u4", count=axes, offset=4).astype(int)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def _read_folder(path: Path) -> Array:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    images = [np.asarray(Image.open(file).convert("L").resize((SIDE, SIDE))) for file in files]
    return np.stack(images) if images else np.empty((0, SIDE, SIDE), np.uint8)
