"""Images that are no clothing, and how well scores tell them from those that are."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn import metrics

from training.data import DataError

Array = np.ndarray

SIDE = 28
_SEED = 0
_GREYS = 5  # steps between blank images


def built_in(test_BHW: Array) -> dict[str, Array]:
    """Make images that are none: uniform noise, and test images with permuted pixels, inverted, and blank ones.

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


def read_images(path: Path) -> Array:
    """Read uint8 images (B, 28, 28), light on dark: an IDX file, gzipped or not, an .npy file, or a folder of images.

    Raises:
        DataError: there are none.
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
        raise ValueError("no IDX file of bytes with three axes")
    shape = np.frombuffer(data, dtype=">u4", count=axes, offset=4).astype(int)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def _read_folder(path: Path) -> Array:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    images = [np.asarray(Image.open(file).convert("L").resize((SIDE, SIDE))) for file in files]
    return np.stack(images) if images else np.empty((0, SIDE, SIDE), np.uint8)


def separation(inside_B: Array, outside_B: Array) -> dict[str, float]:
    """How well a score, high for what is outside, tells it from what is inside.

    Returns:
        "auroc" and "aupr", areas under the receiver operating characteristic and the precision-recall curve, with the
        outside as positives; "fpr95", the part of the inside that scores no less than 95 % of the outside do.
    """
    scores = np.concatenate([inside_B, outside_B])
    is_outside = np.concatenate([np.zeros(len(inside_B)), np.ones(len(outside_B))])
    false_rate, true_rate, _ = metrics.roc_curve(is_outside, scores)
    return {
        "auroc": float(metrics.roc_auc_score(is_outside, scores)),
        "aupr": float(metrics.average_precision_score(is_outside, scores)),
        "fpr95": float(false_rate[np.searchsorted(true_rate, 0.95)]),
    }
