"""Fashion-MNIST as tensors: search, verification, splits."""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.uint8]]

DATA_VARIABLE = "MCD_DATA_DIR"
DOWNLOAD_ERRORS = (OSError, RuntimeError, HTTPException)  # raised by torchvision
_CALIBRATION_SEED, _VALIDATION_SEED = 1, 0
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# Class order of https://github.com/zalandoresearch/fashion-mnist
CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


class DataError(Exception):
    """Fashion-MNIST was not found, or the files found have other contents."""


@dataclass(frozen=True)
class Images:
    """Images and their classes: `images_B` uint8 of shape (B, 28, 28), light on dark; `labels_B` int64 in 0..9."""

    images_B: Tensor
    labels_B: Tensor

    def __len__(self) -> int:
        return len(self.labels_B)

    def __getitem__(self, index_B: Tensor | slice) -> "Images":
        return Images(self.images_B[index_B], self.labels_B[index_B])

    def to(self, device: torch.device) -> "Images":
        """Move both tensors to a device."""
        return Images(self.images_B.to(device), self.labels_B.to(device))

    @property
    def inputs_B(self) -> Tensor:
        """Input of the network: float32 in [0, 1] of shape (B, 1, 28, 28)."""
        return as_inputs(self.images_B)


@dataclass(frozen=True)
class FashionMNIST:
    """The verified data set.

    Attributes:
        train: 60,000 images.
        test: 10,000 images.
        source: folder of the files.
    """

    train: Images
    test: Images
    source: Path


@dataclass(frozen=True)
class _File:
    name: str
    shape: tuple[int, ...]
    sha256: str  # of the array's bytes, without the IDX header


FILES = (
    _File(
        "train-images-idx3-ubyte", (60_000, 28, 28), "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"
    ),
    _File("train-labels-idx1-ubyte", (60_000,), "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"),
    _File(
        "t10k-images-idx3-ubyte", (10_000, 28, 28), "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"
    ),
    _File("t10k-labels-idx1-ubyte", (10_000,), "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"),
)


def as_inputs(images_B: Tensor) -> Tensor:
    """Turn uint8 images (B, 28, 28) into the network's input: float32 in [0, 1] of shape (B, 1, 28, 28)."""
    return images_B.unsqueeze(1) / torch.tensor(255.0, device=images_B.device)


def load_fashion_mnist(
    folder: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    download: bool = True,
) -> FashionMNIST:
    """Find, read and verify Fashion-MNIST.

    The search order is: `folder`, or else the folder named by MCD_DATA_DIR; the folder of Debian's package
    dataset-fashion-mnist; the cache; torchvision's download into the cache. A folder that is named must contain
    the data.

    Args:
        folder: contains the four IDX files, gzipped or not, directly or in FashionMNIST/raw.
        environ: environment with MCD_DATA_DIR and XDG_CACHE_HOME.
        download: whether torchvision may download missing files.

    Raises:
        DataError: no data was found (the message lists all remedies), or a file has wrong contents.
    """
    chosen = folder or environ.get(DATA_VARIABLE)
    cache = cache_folder(environ)
    candidates = [Path(chosen)] if chosen else [DEBIAN_FOLDER, cache]
    for candidate in candidates:
        if source := _find_files(candidate):
            return _read(source)
    failure = "not tried"
    if download and not chosen:
        failure = _download(cache)
        if source := _find_files(cache):
            return _read(source)
    raise DataError(
        f"Fashion-MNIST was not found in {', '.join(map(str, candidates))} (download: {failure}). Remedies: "
        f"name its folder with --data or {DATA_VARIABLE}; or `apt-get install {DEBIAN_PACKAGE}` on Debian and Ubuntu; "
        f"or put the four .gz files of github.com/zalandoresearch/fashion-mnist into {cache}; "
        "or go online and run this again, so that torchvision can download them"
    )


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of downloads."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcd"


@dataclass(frozen=True)
class Splits:
    """The 60,000 images by purpose; the split is the same for every seed.

    Attributes:
        training: images to fit weights to.
        validation: images to choose recipes with.
        calibration: images to calibrate the result with.
    """

    training: Images
    validation: Images
    calibration: Images


def split_data(train: Images, *, images_per_part: int, validate: bool) -> Splits:
    """Hold out validation images and, from the rest, calibration images.

    Args:
        train: the 60,000 images.
        images_per_part: number of validation and of calibration images, a multiple of the number of classes.
        validate: whether validation images are excluded from training. Calibration images never are validation images.
    """
    rest, validation = hold_out(train, held_out=images_per_part, seed=_VALIDATION_SEED)
    training, calibration = hold_out(rest, held_out=images_per_part, seed=_CALIBRATION_SEED)
    if not validate:
        training, validation = _concatenate(training, validation), validation[:0]
    return Splits(training, validation, calibration)


def _concatenate(one: Images, other: Images) -> Images:
    return Images(torch.cat([one.images_B, other.images_B]), torch.cat([one.labels_B, other.labels_B]))


def hold_out(train: Images, *, held_out: int, seed: int) -> tuple[Images, Images]:
    """Split images into a training part and a held-out part with equally many of each class.

    Args:
        train: the images to split.
        held_out: number of images to hold out, a multiple of the number of classes.
        seed: seed of the permutation that selects them.

    Raises:
        ValueError: `held_out` is not a multiple of the number of classes.
    """
    images_per_class, rest = divmod(held_out, len(CLASSES))
    if rest:
        raise ValueError(f"held_out must be a multiple of {len(CLASSES)}, got {held_out}")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    labels = train.labels_B[order]
    chosen = torch.cat([order[labels == label][:images_per_class] for label in range(len(CLASSES))])
    is_held_out = torch.zeros(len(train), dtype=torch.bool)
    is_held_out[chosen] = True
    return train[~is_held_out], train[is_held_out]


def _find_files(folder: Path) -> Path | None:
    for candidate in (folder, folder / "FashionMNIST" / "raw"):
        if all(_path(candidate, file.name).is_file() for file in FILES):
            return candidate
    return None


def _path(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _read(source: Path) -> FashionMNIST:
    arrays = [read_idx(_path(source, file.name), len(file.shape), file.shape) for file in FILES]
    for file, array in zip(FILES, arrays, strict=True):
        _check(_path(source, file.name), file, array)
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(array) for array in arrays)
    return FashionMNIST(
        train=Images(train_images, train_labels.long()), test=Images(test_images, test_labels.long()), source=source
    )


def read_idx(path: Path, axes: int, shape: tuple[int, ...] | None = None) -> Array:
    """Read an IDX file of bytes.

    Args:
        path: the file; gzipped if its name ends in .gz.
        axes: number of axes of the array.
        shape: of the array; None for any.

    Raises:
        DataError: the file can't be read, or has something else.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected an IDX file, got one that can't be read ({error})") from error
    # IDX: two zero bytes, type 8 (unsigned byte), number of axes, then each axis as a big-endian 32-bit number.
    start = 4 + 4 * axes
    found = tuple(int.from_bytes(data[place : place + 4], "big") for place in range(4, start, 4))
    is_idx = data[:4] == bytes((0, 0, 8, axes)) and len(data) == start + math.prod(found)
    if not is_idx or found != (shape or found):
        wanted = f"of shape {shape}" if shape else f"of {axes} {'axis' if axes == 1 else 'axes'}"
        raise DataError(f"{path}: expected bytes in IDX format {wanted}, got {len(data)} other bytes")
    return np.frombuffer(bytearray(data), dtype=np.uint8, offset=start).reshape(found)


def _check(path: Path, file: _File, array: Array) -> None:
    if array.ndim == 1:
        counts = np.bincount(array, minlength=len(CLASSES)).tolist()
        if counts != [len(array) // len(CLASSES)] * len(CLASSES):
            raise DataError(f"{path}: expected equally many labels of {len(CLASSES)} classes, got {counts}")
    found = hashlib.sha256(array.data).hexdigest()
    if found != file.sha256:
        raise DataError(f"{path}: expected contents of sha256 {file.sha256}, got {found}")


def _download(cache: Path) -> str:
    """Download with torchvision into the cache; describe the outcome."""
    from training.vision import torchvision  # noqa: PLC0415 - slow to import, and rarely needed

    try:
        torchvision.datasets.FashionMNIST(str(cache), train=True, download=True)
    except DOWNLOAD_ERRORS as error:
        return f"failed, {' '.join(str(error).split())}"
    return "done"
