"""The Ray Data job: reads images, scores them, and writes rows."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from service.bulk.inputs.source import Source, one_line
from service.bulk.output import CHECKPOINT, PARTS, Output
from service.bulk.ray_internals import checkpoint_config
from service.bulk.reading import Images
from service.bulk.scoring import REPEATED, Scorer

_CPUS_OF_A_WORKER = 0.5  # in Ray's units; the other half is for workers restarted after the loss of a machine
_NO_CPUS = 0  # so that writing tasks never wait for CPUs held by the workers: with few CPUs, that would be a deadlock
# glibc settings of the workers: keep freed memory for the next images, because new pages cost time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
_BLOCK_BYTES = 2**25
_CONNECT_SECONDS = 10
_STORE_BYTES = 2**28  # object store of a local Ray


class JobError(RuntimeError):
    """A run that failed; the message has the reason in one line."""


@contextmanager
def ray_session(address: str | None, workers: int | None) -> Iterator[int]:
    """Connect to a Ray cluster, or start a local Ray; yield the number of workers.

    Args:
        address: address of a cluster; None for a local Ray.
        workers: number of workers; None for the number of cores.

    Raises:
        JobError: Ray can't be reached or started.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # we report each error once
    own = workers or len(os.sched_getaffinity(0))
    try:
        _check_reachable(address)
        with _without_standard_error():
            if address:
                ray.init(address, **quiet)
            else:
                ray.init("local", num_cpus=own, object_store_memory=_STORE_BYTES, include_dashboard=False, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise JobError(f"Ray can't be reached at {address or 'this machine'} ({one_line(error)})") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's handler would end the process without a message
    try:
        yield workers or int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Check that the address accepts connections: Ray itself would retry without a message."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """Suppress what Ray's C++ code prints to standard error about its settings."""
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)


def score(source: Source, output: Output, done: pa.Array, *, workers: int, **scorer: Any) -> None:
    """Write a row for each image that is not done; needs a `ray_session`.

    Args:
        source: the images.
        output: output folder, after `Output.begin`.
        done: ids of the images that are already done.
        workers: number of worker processes.
        scorer: arguments of `Scorer`.

    Raises:
        JobError: reading or writing failed.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    context.memory_usage_poll_interval_s = None  # it is not shown, and pauses the workers
    context.checkpoint_config = checkpoint_config(output.at(CHECKPOINT), output.filesystem)
    workers = min(workers, len(source.shards))
    # The same resources for both, so that Ray Data fuses them into one operator: a worker scores what it has read.
    process: dict[str, Any] = {"num_cpus": _CPUS_OF_A_WORKER, "runtime_env": {"env_vars": KEEP_MEMORY}}
    try:
        images = ray.data.read_datasource(
            Images(source.shards, ray.put(done)), override_num_blocks=len(source.shards), **process
        )
        rows = images.map_batches(
            Scorer,
            fn_constructor_kwargs=scorer,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=workers),
            **process,
        )
        rows.write_parquet(
            output.at(PARTS),
            filesystem=output.filesystem,
            ray_remote_args={"num_cpus": _NO_CPUS},
            concurrency=-(-workers // 2),
            use_dictionary=REPEATED,  # a dictionary of values that rarely repeat costs time and space
        )
    except Exception as error:
        raise JobError(f"{_root_cause(error)}; --resume continues from the rows that are written") from error


def _root_cause(error: BaseException) -> str:
    """First line of the original error, inside all exceptions that Ray wraps around it."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    message = getattr(error, "strerror", None) or str(error)
    return next(iter(message.splitlines()), type(error).__name__)
