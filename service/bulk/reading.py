"""The data source for Ray Data."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import ray
from pyarrow import fs
from ray.data import DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from service.bulk.inputs.source import Shard


class Images(Datasource):
    """Reads shards, and skips images that are done.

    Args:
        shards: the shards; each becomes a read task.
        done: ids of the images that are done.
    """

    def __init__(self, shards: Sequence[Shard], done: "ray.ObjectRef[pa.Array]") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shards, self._done = shards, done

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the size is unknown."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - a shard is a task
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,  # noqa: ARG002 - as Ray Data calls it
    ) -> list[ReadTask]:
        """Make one read task for each shard."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(partial(_read, shard, self._done), unknown, per_task_row_limit=per_task_row_limit)
            for shard in self._shards
        ]


def _read(shard: Shard, done: "ray.ObjectRef[pa.Array]") -> Iterator[pa.Table]:
    tables = shard.read(ray.get(done), include=False)
    return tables if isinstance(shard.filesystem, fs.LocalFileSystem) else _read_ahead(tables)


def _read_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Read the next table in a thread while the current one is scored."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, tables, None)
        while (table := following.result()) is not None:
            following = pool.submit(next, tables, None)
            yield table
