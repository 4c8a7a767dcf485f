"""Labels as indices of classes: one rule for folders, tables and arrays."""

from collections.abc import Sequence

import numpy as np

from training.adopt.errors import ImagesError
from training.adopt.wording import first_of

_MAX_INDEX = 100_000  # a larger integer is no index


def index_labels(
    source: object, found: Sequence[int] | Sequence[str], classes: Sequence[str] | None, names: Sequence[str] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Find the index of the class of each label, and the names of all classes.

    Integers are indices, also if they are written as text ("10", but not "010"): then only if none of them is a name
    among the classes. Other texts are names.

    Args:
        source: what messages call the images.
        found: N labels.
        classes: names in the order of the network's outputs; None for the indices from 0 to the largest label, or for
            the sorted names.
        names: further labels without images, of which only `classes` takes the place.

    Returns:
        Indices (N,), int64, and the names.

    Raises:
        ImagesError: a label that no class has.
    """
    labels = [label for label in found if isinstance(label, int)]
    if labels:
        return _by_index(source, labels, max(labels), classes)
    texts = [str(label) for label in found]
    known = {*texts, *(names if classes is None else ())}
    if all(map(_is_index, known)) and known.isdisjoint(classes or ()):
        return _by_index(source, [int(text) for text in texts], max(map(int, known)), classes)
    return _by_name(source, texts, sorted(known) if classes is None else classes)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and str(int(text)) == text


def _by_name(source: object, found: Sequence[str], classes: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    index = {name: place for place, name in enumerate(classes)}
    if unknown := sorted({name for name in found if name not in index}):
        raise ImagesError(
            f"{source}: images of the classes {first_of(unknown)}, but the classes are {first_of(classes)}: "
            "--classes must name them as the images do, in the order of the network's outputs"
        )
    return np.array([index[name] for name in found], np.int64), tuple(classes)


def _by_index(
    source: object, found: Sequence[int], largest: int, classes: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    if negative := sorted({label for label in found if label < 0}):
        raise ImagesError(
            f"{source}: labels {first_of([str(label) for label in negative])}, but indices of classes start at 0: "
            "leave these images out, or correct their labels"
        )
    if classes is None and largest > _MAX_INDEX:
        raise ImagesError(
            f"{source}: the label {largest} is no index of a class: if it is a name, name all classes with --classes, "
            "in the order of the network's outputs"
        )
    classes = tuple(map(str, range(largest + 1))) if classes is None else tuple(classes)
    if wrong := sorted({label for label in found if label >= len(classes)}):
        labels = first_of([str(label) for label in wrong])
        raise ImagesError(
            f"{source}: labels {labels}, but there are {len(classes)} classes, whose indices start at 0: "
            "--classes must name all of them, in the order of the network's outputs"
        )
    return np.array(found, np.int64), classes
