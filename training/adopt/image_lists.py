"""Images and labels in a CSV file."""

import csv
from pathlib import Path

from training.adopt.errors import ImagesError
from training.adopt.stored_images import ImageFile
from training.adopt.wording import first_of

SUFFIX = ".csv"
_COLUMNS = ("path", "label")


def listed_images(path: Path) -> tuple[list[ImageFile], list[str]]:
    """Find the images of a CSV file with the columns `path`, relative to the file, and `label`.

    Raises:
        ImagesError: the file can't be read, has no such columns or a row without both, or names files that don't exist.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImagesError(f"{path}: expected a CSV file, got {error}") from error
    if not set(_COLUMNS) <= set(columns):
        raise ImagesError(f"{path}: expected the columns path and label, got {', '.join(columns) or 'none'}")
    for line, row in rows:
        if empty := [name for name in _COLUMNS if not (row[name] or "").strip()]:
            raise ImagesError(f"{path}, line {line}: no {empty[0]}: complete the line, or leave it out")
        if None in row:
            raise ImagesError(f"{path}, line {line}: more than {len(columns)} values: quote values that have a comma")
    files = [ImageFile(path.parent / row["path"]) for _, row in rows]
    if missing := [one.name for one in files if not one.path.is_file()]:
        raise ImagesError(f"{path}: files that don't exist: {first_of(missing)}")
    return files, [row["label"] for _, row in rows]
