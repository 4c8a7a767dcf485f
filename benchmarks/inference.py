"""Time and memory of dropout predictions, compared with other methods: `python -m benchmarks.inference`.

The same embedded weights and test images for all, in one process, taking turns; medians. Every way is first held
against ours: its mean must be within what its masks let expect. Writes docs/performance/speed.md and speed.png.
"""

import os
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.common import FOLDER, interleaved, machine, peak_memory, table, use_threads, write
from benchmarks.methods import EVAL, METHODS, MOMENTS, OURS, STRATIFIED, UNAVAILABLE, WITH_REPLICATION, WITHOUT_SAMPLES
from model import load_artifact
from training.data import load_fashion_mnist

BATCHES = (1, 32, 256)
SAMPLES = (10, 30, 100, 1000)
BUDGET = 0.3  # seconds a way, batch size and number of samples
MAX_PASSES = 60_000  # batch size x samples: above it, ways that run the whole network for each are left out
MAX_REPLICAS = 60_000  # likewise, with all images in memory at once
MEMORY_BATCH = 256

console = Console(highlight=False)


def check(images_B: Tensor) -> None:
    """Compare each method's mean of 300 masks with our mean of 1000."""
    network = load_artifact().network
    expected_BC = _mean(OURS[STRATIFIED](network, 1000)(images_B))
    for name, make in METHODS.items():
        if name != EVAL:
            error = (_mean(make(network, 300)(images_B)) - expected_BC).square().mean().sqrt().item()
            assert error < 0.01, f"{name}: its mean is off by {error}"


def _mean(probs: Tensor) -> Tensor:
    """Over the samples, where there are any."""
    return probs if probs.ndim == 2 else probs.mean(dim=0)


def is_skipped(name: str, batch: int, samples: int) -> bool:
    """Whether a method would need too much time or memory for this table."""
    if name in OURS or name in WITHOUT_SAMPLES:
        return False
    return batch * samples > (MAX_REPLICAS if name in WITH_REPLICATION else MAX_PASSES)


def measure(images_B: Tensor, threads: int) -> dict[tuple[str, int, int], float]:
    """Median seconds by way, batch size and number of samples."""
    use_threads(threads)
    network = load_artifact().network
    found = {}
    for batch in BATCHES:
        for samples in SAMPLES:
            methods = {
                name: make(network, samples) for name, make in METHODS.items() if not is_skipped(name, batch, samples)
            }
            part_B = images_B[:batch]
            calls = {name: (lambda method=method, part_B=part_B: method(part_B)) for name, method in methods.items()}
            label = f"{threads} threads, {batch} images, {samples} samples"
            for name, median in interleaved(calls, budget=BUDGET, label=label).items():
                found[name, batch, samples] = median
    return found


def peak_megabytes(name: str, samples: int) -> float:
    """Measure a way's memory in a process of its own, above a small call of it."""
    code = "import sys; from benchmarks.inference import print_peak; print_peak(sys.argv[1], int(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(samples)], capture_output=True, text=True, check=True, timeout=600
    )
    return float(done.stdout)


def print_peak(name: str, samples: int) -> None:
    """Print by how many MB the peak memory rises over that of a small call."""
    use_threads(1)
    images_B = torch.rand(MEMORY_BATCH, 1, 28, 28)
    network = load_artifact().network
    with torch.no_grad():
        METHODS[name](network, 2)(images_B[:1])
        before = peak_memory()
        METHODS[name](network, samples)(images_B)
    sys.stdout.write(f"{peak_memory() - before}\n")


def milliseconds(seconds: float | None) -> str:
    """Format a time, or its absence."""
    return "-" if seconds is None else f"{seconds * 1e3:.3g}"


def report(by_threads: dict[int, dict[tuple[str, int, int], float]], memory: dict[tuple[str, int], float]) -> str:
    """Write the tables."""
    text = f"# Speed and memory\n\nMade by `make bench`. {machine()}\n\n"
    text += "Medians of interleaved calls; the ratio is to an eval-mode forward of the same batch.\n"
    for name, reason in UNAVAILABLE.items():
        text += f"\n{name} could not be installed and is missing: {reason}\n"
    for threads, found in by_threads.items():
        text += f"\n## {threads} thread{'s' if threads > 1 else ''}\n"
        for batch in BATCHES:
            text += f"\nMilliseconds (ratio) for {batch} image{'s' if batch > 1 else ''}, by number of samples:\n\n"
            rows = []
            for name in METHODS:
                cells = []
                for samples in SAMPLES:
                    seconds = found.get((name, batch, samples))
                    ratio = "" if seconds is None else f" ({seconds / found[EVAL, batch, samples]:.3g})"
                    cells.append(milliseconds(seconds) + ratio)
                rows.append([name, *cells])
            text += table(["", *(f"N = {samples}" for samples in SAMPLES)], rows)
    text += f"\n(-: left out, {MAX_PASSES:,} passes of an image and more.)\n"
    text += f"\n## Memory\n\nPeak above a small call, in MB, for {MEMORY_BATCH} images:\n\n"
    rows = [
        [name, *(f"{memory[name, samples]:.0f}" if (name, samples) in memory else "-" for samples in SAMPLES[2:])]
        for name in METHODS
    ]
    return text + table(["", *(f"N = {samples}" for samples in SAMPLES[2:])], rows)


def draw(found: dict[tuple[str, int, int], float]) -> None:
    """Draw time against samples for one image and for many."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharex=True, layout="constrained")
    for ax, batch in zip(axes, (BATCHES[0], BATCHES[-1]), strict=True):
        for name in METHODS:
            points = [(n, found[name, batch, n] * 1e3) for n in SAMPLES if (name, batch, n) in found]
            style = {"linewidth": 2.5} if name in OURS else {"linewidth": 1, "linestyle": "--"}
            ax.plot(*zip(*points, strict=True), marker="o", label=name, **style)
        ax.set(xscale="log", yscale="log", xlabel="samples", ylabel="milliseconds", title=f"images at once: {batch}")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(FOLDER / "speed.png", dpi=110)


def main() -> None:
    """Measure, print and write."""
    mpl.use("Agg")
    images_B = load_fashion_mnist().test.inputs_B[: max(BATCHES)]
    torch.manual_seed(0)
    with torch.no_grad():
        check(images_B[:20])
        by_threads = {threads: measure(images_B, threads) for threads in sorted({1, os.cpu_count() or 1})}
    jobs = [
        (name, samples) for samples in SAMPLES[2:] for name in METHODS if not is_skipped(name, MEMORY_BATCH, samples)
    ]
    memory = {job: peak_megabytes(*job) for job in track(jobs, "memory", transient=True)}
    text = report(by_threads, memory)
    write("speed.md", text)
    draw(by_threads[1])
    console.print(text, markup=False)
    one = by_threads[1]
    console.print(f"{STRATIFIED}, 1 image, N = 100: {one[STRATIFIED, 1, 100] / one[EVAL, 1, 100]:.2f} eval forwards")
    console.print(f"{MOMENTS}, 1 image: {one[MOMENTS, 1, 100] / one[EVAL, 1, 100]:.2f} eval forwards")


if __name__ == "__main__":
    main()
