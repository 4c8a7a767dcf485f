"""Shared code of the benchmarks: interleaved timing, description of the machine, tables."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.progress import Progress
from threadpoolctl import threadpool_info, threadpool_limits

from model.artifact import write_atomically

FOLDER = Path(__file__).parent.parent / "docs" / "performance"
_MAX_ROUNDS = 400
_FAST_CALL_REPEATS = 20
_FAST_CALL_SECONDS = 0.0005  # seconds


def use_threads(count: int) -> None:
    """Set the number of threads of torch and NumPy."""
    torch.set_num_threads(count)
    threadpool_limits(count)


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, budget: float, label: str, least: int = 3
) -> dict[str, float]:
    """Measure the median seconds of each call; calls take turns, so that disturbances affect all alike.

    Fast calls are repeated between two turns of slow calls, which would otherwise leave cold caches. The order is
    random, so that no call always follows the same other call.

    Args:
        calls: calls by name.
        budget: seconds for each call.
        label: label of the progress bar.
        least: number of turns that also a call which exceeds its budget has, and of calls before the first turn.
    """
    fastest = {name: min(_seconds(call) for _ in range(least)) for name, call in calls.items()}
    repeats = {
        name: _FAST_CALL_REPEATS
        if seconds_taken < max(fastest.values()) / 10 or seconds_taken < _FAST_CALL_SECONDS
        else 1
        for name, seconds_taken in fastest.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)  # noqa: S311 - for measuring
    with Progress(transient=True) as progress:
        task = progress.add_task(label, total=budget * len(calls))
        for _ in range(_MAX_ROUNDS):
            used = {name: sum(times) for name, times in seconds.items()}
            active = [name for name, times in seconds.items() if len(times) < least or used[name] < budget]
            if not active:
                break
            for repeat in range(_FAST_CALL_REPEATS):
                for name in order.sample(active, len(active)):
                    if repeat < repeats[name]:
                        seconds[name].append(_seconds(calls[name]))
            progress.update(task, completed=sum(min(total, budget) for total in used.values()))
    return {name: statistics.median(times) for name, times in seconds.items()}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB; Linux."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024  # ru_maxrss would include the parent's peak


def machine(*others: str) -> str:
    """Describe processor and versions, also of other packages, in one line."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    packages = ("torch", "numpy", "onnxruntime", "bentoml", "baal", "torch-uncertainty", *others)
    versions = ", ".join(f"{name} {found}" for name in packages if (found := _version(name)))
    kernels = ", ".join(sorted({pool["architecture"] for pool in threadpool_info() if "architecture" in pool}))
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}; OpenBLAS for {kernels}."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table, the first column to the left, the others to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(name: str, text: str) -> None:
    """Write a file of docs/performance atomically."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_atomically(FOLDER / name, text.encode())
