"""Labelled images: a folder of class folders, a folder of files named after classes, a table, or arrays."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.adopt.class_labels import index_labels
from training.adopt.errors import ImagesError
from training.adopt.image_arrays import array_images, is_array_file
from training.adopt.image_lists import SUFFIX as CSV
from training.adopt.image_lists import listed_images
from training.adopt.image_tables import SUFFIX as TABLE
from training.adopt.image_tables import table_images
from training.adopt.stored_images import ImageFile, StoredImage
from training.adopt.wording import first_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MAX_NAME = 200  # characters of a class


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        images: N of them, where they are stored.
        labels_N: index of the class of each, int64.
        classes: names of the classes, in the order of the network's outputs.
    """

    images: tuple[StoredImage, ...]
    labels_N: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def select(self, indices: Sequence[int] | np.ndarray) -> "LabelledImages":
        """Some of the images."""
        return LabelledImages(tuple(self.images[index] for index in indices), self.labels_N[indices], self.classes)

    def split(self, seed: int, fraction: float) -> tuple["LabelledImages", "LabelledImages"]:
        """Split at random into a part for calibration and one for testing.

        Each class gives the same fraction of its images, as far as whole images allow.

        Args:
            seed: of the split.
            fraction: of the images in the first part, between 0 and 1.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))
        place_N = np.empty(len(self))  # of an image among those of its class, in (0, 1)
        for label in np.unique(self.labels_N):
            members = order[self.labels_N[order] == label]
            place_N[members] = (np.arange(len(members)) + rng.random()) / len(members)
        # Ties between classes are broken by the permutation, so that classes of one image are divided, too.
        ranked = order[np.argsort(place_N[order], kind="stable")]
        first = round(fraction * len(self))
        return self.select(np.sort(ranked[:first])), self.select(np.sort(ranked[first:]))


def read_classes(path: Path) -> tuple[str, ...]:
    """Read names of classes from a text file, one a line, in the order of the network's outputs.

    Raises:
        ImagesError: the file can't be read, or a name is empty, too long or occurs twice.
    """
    if not path.exists():
        raise ImagesError(f"--classes {path} doesn't exist")
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ImagesError(f"{path}: expected a text file with one class a line, got {error}") from error
    if "" in names or len(names) < 2:
        raise ImagesError(f"{path}: expected at least two classes, one a line and no empty line, got {len(names)}")
    if long := [name for name in names if len(name) > _MAX_NAME]:
        raise ImagesError(f"{path}: a class may have {_MAX_NAME} characters, got {len(long[0])}: {long[0][:30]}...")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ImagesError(f"{path}: classes must differ, got {first_of(twice)} more than once")
    return names


def find_images(source: Path, classes: Sequence[str] | None = None, labels: Path | None = None) -> LabelledImages:
    """Find labelled images.

    Args:
        source: a folder with one folder for each class; a folder of files, each named after its class; a CSV file with
            the columns `path` (relative to the file) and `label`; a Parquet file, see `table_images`; or an array, see
            `array_images`.
        classes: names in the order of the network's outputs; see `index_labels`.
        labels: file of the labels of an array.

    Raises:
        ImagesError: there are no images, or the names of classes don't fit.
    """
    if not source.exists():
        raise ImagesError(f"--images {source} doesn't exist")
    if labels is not None and not is_array_file(source):
        raise ImagesError(f"--labels is for images in an .npy or IDX file, and {source} has the labels itself")
    if labels is not None and not labels.exists():
        raise ImagesError(f"--labels {labels} doesn't exist")
    images: Sequence[StoredImage]
    found: list[int] | list[str]
    names: Sequence[str] = ()
    if source.is_dir():
        named, names = _in_folder(source, classes)
        images, found = [ImageFile(path) for path, _ in named], [name for _, name in named]
    elif source.suffix.lower() == CSV:
        images, found = listed_images(source)
    elif source.suffix.lower() == TABLE:
        images, found = table_images(source)
    elif is_array_file(source):
        images, found = array_images(source, labels)
    else:
        raise ImagesError(
            f"{source}: expected a folder of images, a CSV or Parquet file with the columns path and label, or an .npy "
            "or IDX file"
        )
    if not images:
        raise ImagesError(f"{source}: no images found ({', '.join(SUFFIXES)})")
    return LabelledImages(tuple(images), *index_labels(source, found, classes, names))


def _in_folder(folder: Path, classes: Sequence[str] | None) -> tuple[list[tuple[Path, str]], list[str]]:
    """Files with the names of their classes, and the names of all folders of classes."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if named := [(path, one.name) for one in folders for path in image_files(one)]:
        return named, [one.name for one in folders]
    return _named_after_classes(folder, classes), []


def image_files(folder: Path) -> list[Path]:
    """The files of a folder and of its folders whose names are those of images, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _named_after_classes(folder: Path, classes: Sequence[str] | None) -> list[tuple[Path, str]]:
    """Files of one folder; a name is a class, or has the class behind or before an underscore."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        return []
    if classes is None:
        raise ImagesError(
            f"{folder}: expected one folder for each class, got files only: name the classes with --classes, "
            "and each file after its class"
        )
    by_key = {_key(name): name for name in classes}
    found = [(path, next((by_key[key] for key in _keys(path.stem) if key in by_key), None)) for path in paths]
    if unknown := [path.name for path, name in found if name is None]:
        raise ImagesError(
            f"{folder}: {first_of(unknown)} named after no class; the classes are {first_of(list(classes))}: "
            "make a folder for each class, or a CSV file with the columns path and label"
        )
    return [(path, name) for path, name in found if name is not None]


def _key(name: str) -> str:
    return name.lower().replace(" ", "_")


def _keys(stem: str) -> list[str]:
    """What a file's name may mean, the most specific first: all of it, without its first or its last part, one part."""
    parts = _key(stem).split("_")
    return ["_".join(parts), "_".join(parts[1:]), "_".join(parts[:-1]), parts[0]]
