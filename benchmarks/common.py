"""What the benchmarks share: interleaved timing, the machine's description, tables."""

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
    """Let torch and NumPy compute with so many threads."""
    torch.set_num_threads(count)
    threadpool_limits(count)


def interleaved(calls: Mapping[str, Callable[[], object]], *, budget: float, label: str) -> dict[str, float]:
    """Median seconds of a call of each, taking turns, so that noise hits all alike.

    Light calls take some laps among themselves between two turns of the others, which else would leave cold caches; in
    an order that changes, so that none always follows the same other.

    Args:
        calls: what to measure.
        budget: seconds for each; one that has used them up gets no more turns, but three at least.
        label: for the progress bar.
    """
    fastest = {name: min(_seconds(call) for _ in range(3)) for name, call in calls.items()}
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
            active = [name for name, times in seconds.items() if len(times) < 3 or used[name] < budget]
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
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024  # ru_maxrss would start with that of the parent


def machine() -> str:
    """Processor and versions, in a line."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    packages = ("torch", "numpy", "bentoml", "baal", "torch-uncertainty")
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
    """Write a file of docs/performance, whole or not at all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_atomically(FOLDER / name, text.encode())
