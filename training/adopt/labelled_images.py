"""Labelled images: a folder of class folders, a folder of files named after classes, a table, or arrays."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.adopt.errors import ImagesError
from training.adopt.stored_images import ImageFile, StoredImage
from training.adopt.wording import first_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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
        ImagesError: the file can't be read, or a name is empty or occurs twice.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ImagesError(f"{path}: expected a text file with one class a line, got {error}") from error
    if "" in names or len(names) < 2:
        raise ImagesError(
            f"{path}: expected at least two classes, one a line and no empty line, got {len(names)} lines"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ImagesError(f"{path}: classes must differ, got {first_of(twice)} more than once")
    return names


def find_images(source: Path, classes: Sequence[str] | None = None) -> LabelledImages:
    """Find labelled images.

    Args:
        source: a folder with one folder for each class; a folder of files, each named after its class; or a CSV file
            with the columns `path` (relative to the file) and `label`.
        classes: names in the order of the network's outputs; without them, the sorted names of folders or labels.

    Raises:
        ImagesError: there are no images, or the names of classes don't fit.
    """
    if source.is_dir():
        folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
        named = [(path, folder.name) for folder in folders for path in _image_files(folder)]
        if not named:
            named = _named_after_classes(source, classes)
        elif classes is None:
            classes = [folder.name for folder in folders]
    elif source.suffix.lower() == ".csv":
        named = _listed(source)
    else:
        raise ImagesError(f"{source}: expected a folder of images, or a CSV file with the columns path and label")
    if not named:
        raise ImagesError(f"{source}: no images found ({', '.join(SUFFIXES)})")
    found = sorted({name for _, name in named})
    classes = tuple(classes or found)
    if unknown := [name for name in found if name not in classes]:
        raise ImagesError(
            f"{source}: images of the classes {first_of(unknown)}, but the classes are {first_of(list(classes))}: "
            "--classes must name them as the images do, in the order of the network's outputs"
        )
    index = {name: place for place, name in enumerate(classes)}
    return LabelledImages(
        tuple(ImageFile(path) for path, _ in named), np.array([index[name] for _, name in named], np.int64), classes
    )


def _image_files(folder: Path) -> list[Path]:
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


def _listed(path: Path) -> list[tuple[Path, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImagesError(f"{path}: expected a CSV file, got {error}") from error
    if rows and not {"path", "label"} <= rows[0].keys():
        raise ImagesError(f"{path}: expected the columns path and label, got {', '.join(map(str, rows[0]))}")
    named = [(path.parent / row["path"], row["label"]) for row in rows]
    if missing := [str(one) for one, _ in named if not one.is_file()]:
        raise ImagesError(f"{path}: files that don't exist: {first_of(missing)}")
    return named
