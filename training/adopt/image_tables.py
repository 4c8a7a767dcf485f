"""Images and labels in a Parquet file, of which a row group at most is in memory at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.adopt.errors import ImagesError
from training.adopt.stored_images import ImageFile, StoredImage, file_identity
from training.adopt.wording import first_of

SUFFIX = ".parquet"
_AT_ONCE = 16  # rows
_BUFFER = 2**20  # bytes that are read at once


class _Rows:
    """A column of encoded images, read forward in batches; going back starts the row group again.

    The memory is that of a row group at most: less, if its pages are small.
    """

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        file = _open(path)
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = [sum(counts[:group]) for group in range(len(counts) + 1)]
        self._batches: Iterator[Any] = iter(())
        self._first = self._end = self._stop = 0  # of the batch, and of its row group
        self._images: list[bytes | None] = []

    def read(self, row: int) -> bytes | None:
        """The image of a row; None if it has none."""
        if not self._first <= row < self._stop:
            group = next(group for group, stop in enumerate(self._starts[1:]) if row < stop)
            self._batches = _open(self._path).iter_batches(
                _AT_ONCE, row_groups=[group], columns=[self._column], use_threads=False
            )
            self._first = self._end = self._starts[group]
            self._stop = self._starts[group + 1]
        while row >= self._end:
            (column,) = next(self._batches).columns
            is_struct = hasattr(column, "field")
            self._images = (column.field("bytes") if is_struct else column).to_pylist()
            self._first, self._end = self._end, self._end + len(self._images)
        return self._images[row - self._first]


@dataclass(frozen=True, eq=False)
class TableImage:
    """The image of one row."""

    path: Path
    rows: _Rows
    row: int

    @property
    def name(self) -> str:
        """Path and row."""
        return f"{self.path}, row {self.row}"

    def identity(self) -> list[object]:
        """Path, size and time of the file, and the row."""
        return [*file_identity(self.path), self.row]

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            ImagesError: the row has none.
        """
        content = self.rows.read(self.row)
        if content is None:
            raise ImagesError(f"{self.name}: the image is missing: leave the row out")
        return content


def table_images(path: Path) -> tuple[list[StoredImage], list[int] | list[str]]:
    """Find the images of a Parquet file, and their labels.

    The column `image` has encoded images, or structs with `bytes` as in data sets of Hugging Face; or the column
    `image` or `path` has paths relative to the file. The column `label` has names or indices of classes.

    Raises:
        ImagesError: the file can't be read, or has something else; or pyarrow is missing.
    """
    pa = _pyarrow()
    file = _open(path)
    schema = file.schema_arrow
    column = next((name for name in ("image", "path") if name in schema.names), None)
    if column is None or "label" not in schema.names:
        raise ImagesError(f"{path}: expected the columns image or path, and label, got {', '.join(schema.names)}")
    labels = file.read(columns=["label"]).column("label").to_pylist()
    wrong = [f"row {row}" for row, label in enumerate(labels) if type(label) not in (int, str)]
    if wrong or len(set(map(type, labels))) > 1:
        raise ImagesError(f"{path}: the column label must have names or indices of classes, but not {first_of(wrong)}")
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        paths = file.read(columns=[column]).column(column).to_pylist()
        files = [ImageFile(path.parent / (name or "")) for name in paths]
        if missing := [one.name for one in files if not one.path.is_file()]:
            raise ImagesError(f"{path}: files that don't exist: {first_of(missing)}")
        return list(files), labels
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ImagesError(f"{path}: the column {column} must have encoded images or paths of files, got {kind}")
    rows = _Rows(path, column)
    return [TableImage(path, rows, row) for row in range(len(labels))], labels


def _pyarrow() -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - of the extra `bulk`
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise ImagesError(f"Parquet files need the extra `bulk` ({error}): pip install '.[bulk]'") from error
    return pa


def _open(path: Path) -> Any:
    pa = _pyarrow()
    try:
        return pa.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        line = " ".join(str(error).split())
        raise ImagesError(f"{path}: expected a Parquet file, got one that can't be read ({line})") from error
