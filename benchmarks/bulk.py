"""Speed of bulk scoring relative to its parts, and its memory: `python -m benchmarks.bulk`.

All 70,000 images of Fashion-MNIST as PNG files under 100 masks, on all cores. The same run measures, before and after
each turn and in as many processes at once as there are workers, what a core does alone: with decoded images, and with
PNG files. A ratio is to the mean of both, so that a machine which gets slower or faster meanwhile changes little. Then
the peak memory for 100,000 and 1,000,000 synthetic images. Writes docs/performance/bulk.md.
"""

import contextlib
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.pool import Pool
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console

from benchmarks.common import machine, table, write
from model import MonteCarloDropout, load_artifact, summarize
from service.bulk.inputs.source import IMAGES
from service.bulk.job import KEEP_MEMORY
from service.bulk.scoring import AT_ONCE, Scorer
from service.inference.limits import ImageLimits
from service.schemas.parameters import Parameters
from training.data import as_inputs, load_fashion_mnist

SAMPLES = 100
SECONDS = 5.0
TURNS = 5
SMALL_COUNT, LARGE_COUNT = 100_000, 1_000_000
MEMORY_SAMPLES = 10

console = Console(highlight=False)


def write_files(folder: Path, pixels_BHW: np.ndarray) -> None:
    """Write images as PNG files, a thousand in a folder."""
    for number, pixels in enumerate(pixels_BHW):
        path = folder / f"{number // 1000:02d}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def engine_speed(paths: list[Path]) -> dict[str, float]:
    """Measure images per second of one process, by operation."""
    masks = MonteCarloDropout(load_artifact().network)
    pixels_BHW = np.stack([np.asarray(Image.open(path)) for path in paths])
    inputs_B = as_inputs(torch.from_numpy(pixels_BHW))
    array_scorer, file_scorer = (
        Scorer(load_artifact(), Parameters(samples=SAMPLES), encoded=encoded, limits=ImageLimits(10**6))
        for encoded in (False, True)
    )
    arrays, files = (
        pa.table([list(map(str, paths)), images, [None] * len(paths)], schema=IMAGES)
        for images in ([pixels.tobytes() for pixels in pixels_BHW], [path.read_bytes() for path in paths])
    )
    calls: dict[str, Callable[[], object]] = {
        "masks": lambda: masks.sample(inputs_B, samples=SAMPLES),
        "masks, summary": lambda: summarize(masks.sample(inputs_B, samples=SAMPLES)),
        "rows of decoded images": lambda: array_scorer(arrays),
        "rows of PNG files": lambda: file_scorer(files),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: len(paths) / statistics.median(times) for name, times in seconds.items()}


def speed_without_ray(pool: Pool, paths: list[Path], processes: int) -> dict[str, float]:
    """Measure images per second of each of several concurrent processes, by operation."""
    found = pool.map(engine_speed, [paths] * processes, chunksize=1)
    return {what: statistics.mean(rates[what] for rates in found) for what in found[0]}


def run_job(source: Path, out: Path, *options: str, on_poll: Callable[[int], None]) -> float:
    """Run a bulk job, call `on_poll` with its pid ten times a second, and return the total seconds."""
    command = [sys.executable, "-m", "service.bulk", str(source), str(out), *options]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            on_poll(process.pid)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return time.monotonic() - start


def job_speed(source: Path, out: Path) -> tuple[float, float]:
    """Score images; return total seconds, and images per second in the last three quarters.

    The first quarter is excluded: results that wait for the start of the first writer appear at once.
    """
    written: list[float] = []

    def watch(_: int) -> None:
        parts = list((out / "_unfinished" / "checkpoint").glob("*[0-9].parquet"))
        written.extend([time.monotonic()] * (len(parts) - len(written)))

    total = run_job(source, out, "--samples", str(SAMPLES), on_poll=watch)
    rows = [pq.read_metadata(path).num_rows for path in out.glob("*.parquet")]
    first = len(rows) // 4  # all parts but the last are of the same size
    return total, (sum(rows) - (first + 1) * max(rows)) / (written[-1] - written[first])


def peak_memory(source: Path, out: Path) -> float:
    """Score images: the most that all processes had, in MB. Looking takes time: of no use beside `job_speed`."""
    samples_mb: list[float] = []
    options = ("--samples", str(MEMORY_SAMPLES))
    seconds = run_job(source, out, *options, on_poll=lambda pid: samples_mb.append(memory(pid)))
    console.print(f"{source.name}: {seconds:.0f} s, {max(samples_mb):.0f} MB")
    return max(samples_mb)


def memory(pid: int) -> float:
    """Memory of a process and its descendants in MB, shared pages counted once (Linux)."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total / 2**20


def main() -> None:
    """Measure, print and write."""
    fashion, cores = load_fashion_mnist(), len(os.sched_getaffinity(0))
    pixels_BHW = np.concatenate([fashion.train.images_B.numpy(), fashion.test.images_B.numpy()])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "in", pixels_BHW)
        paths = sorted((folder / "in").rglob("*.png"))[:AT_ONCE]
        totals, steady = [], []
        with mock.patch.dict(os.environ, KEEP_MEMORY):  # as workers have it
            pool = multiprocessing.get_context("spawn").Pool(cores)
        with pool:
            alone = [speed_without_ray(pool, paths, cores)]
            for turn in range(TURNS):
                total, rate = job_speed(folder / "in", folder / f"out{turn}")
                console.print(f"{total:.0f} s, {rate:,.0f} images a second")
                totals.append(total)
                steady.append(rate)
                alone.append(speed_without_ray(pool, paths, cores))
        peaks = {}
        for rows in (SMALL_COUNT, LARGE_COUNT):
            repeated = np.concatenate([pixels_BHW] * (rows // len(pixels_BHW) + 1))[:rows]
            np.save(folder / f"{rows}.npy", repeated)
            peaks[rows] = peak_memory(folder / f"{rows}.npy", folder / f"out{rows}")
    table_rows = [
        ["bulk scoring, from PNG files to rows in Parquet", f"{statistics.median(steady) / cores:,.0f}", "1.00"]
    ]
    for what in alone[0]:
        rates = [(before[what] + after[what]) / 2 for before, after in itertools.pairwise(alone)]
        ratios = [rate / cores / one for rate, one in zip(steady, rates, strict=True)]
        part = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table_rows.append([f"alone: {what}", f"{statistics.median(rates):,.0f}", part])
    text = (
        f"# Bulk scoring\n\nMade by `python -m benchmarks.bulk`. {machine()} Ray {version('ray')}.\n\n"
        f"{len(pixels_BHW):,} images of Fashion-MNIST as PNG files, {SAMPLES} masks, {cores} workers on {cores} cores: "
        f"{statistics.median(totals):.0f} s in all, with the start of Ray and its workers; in the last three quarters "
        f"{statistics.median(steady):,.0f} images a second ({min(steady):,.0f} to {max(steady):,.0f} in {TURNS} runs). "
        f"What a core does alone was measured in {cores} processes at once, before and after each run; medians, and of "
        "the ratios the range too.\n\n"
        + table(["a core", "images/s", "bulk / it"], table_rows)
        + f"\nPeak memory of all processes, Ray's included, for arrays under {MEMORY_SAMPLES} masks: "
        f"{peaks[SMALL_COUNT]:,.0f} MB for {SMALL_COUNT:,} images, {peaks[LARGE_COUNT]:,.0f} MB for {LARGE_COUNT:,}, "
        f"{peaks[LARGE_COUNT] / peaks[SMALL_COUNT]:.2f} times as much.\n"
    )
    write("bulk.md", text)
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
