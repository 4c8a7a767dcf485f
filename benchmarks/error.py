"""Error of dropout's mean, variance and mutual information against its cost: `python -m benchmarks.error`.

On 200 test images, against 200,000 independent masks; root mean squares over images, classes and seeds. Also how often
the mean plus or minus 1.96 standard errors covers that reference. Writes docs/performance/error.md and error.png.
"""

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.common import FOLDER, interleaved, machine, table, use_threads, write
from model import Masks, MomentPropagation, MonteCarloDropout, entropy, load_artifact, summarize
from training.data import FashionMNIST, load_fashion_mnist, split_data
from training.recipes import RECIPES

IMAGES = 200
REFERENCE_SAMPLES = 200_000
REFERENCE_SEED = 10**6  # different from the measured seeds
SAMPLES = (10, 20, 30, 50, 100, 200, 500, 1000)
SEEDS = range(10)
COVERAGE_SAMPLES = 100
DESIGNS: tuple[Masks, ...] = ("stratified", "independent")

console = Console(highlight=False)


@dataclass(frozen=True)
class Reference:
    """Moments over a very large number of masks."""

    mean_BC: Tensor
    variance_BC: Tensor
    information_B: Tensor


def compute_reference(mc: MonteCarloDropout, images_B: Tensor) -> Reference:
    """Average many independent masks, a thousand at a time."""
    sums = {"mean": 0.0, "square": 0.0, "entropy": 0.0}
    rounds = REFERENCE_SAMPLES // 1000
    for index in track(range(rounds), f"{REFERENCE_SAMPLES:,} masks of {len(images_B)} images", transient=True):
        probs_SBC = mc.sample(images_B, samples=1000, seed=REFERENCE_SEED + index, masks="independent").double()
        sums["mean"] += probs_SBC.mean(dim=0) / rounds
        sums["square"] += probs_SBC.square().mean(dim=0) / rounds
        sums["entropy"] += entropy(probs_SBC).mean(dim=0) / rounds
    mean_BC, square_BC, entropy_B = (torch.as_tensor(value) for value in sums.values())
    return Reference(mean_BC, square_BC - mean_BC.square(), entropy(mean_BC) - entropy_B)


def squared_errors(reference: Reference, mean_BC: Tensor, variance_BC: Tensor, information_B: Tensor) -> Tensor:
    """Mean squared errors of mean, variance and mutual information."""
    pairs = (
        (mean_BC, reference.mean_BC),
        (variance_BC, reference.variance_BC),
        (information_B, reference.information_B),
    )
    return torch.stack([(found - true).square().mean() for found, true in pairs])


def sampling_errors(
    mc: MonteCarloDropout, images_B: Tensor, reference: Reference, samples: int, masks: Masks
) -> Tensor:
    """Root mean squared errors over the seeds."""
    squares = []
    for seed in SEEDS:
        found = summarize(mc.sample(images_B, samples=samples, seed=seed, masks=masks), masks=masks)
        squares.append(squared_errors(reference, found.mean, found.variance, found.mutual_information))
    return torch.stack(squares).mean(dim=0).sqrt()


def coverage(mc: MonteCarloDropout, images_B: Tensor, reference: Reference, masks: Masks) -> tuple[float, float]:
    """How often the interval of 1.96 standard errors holds the true mean: of all classes, and of the top class."""
    covered = []
    for seed in SEEDS:
        found = summarize(mc.sample(images_B, samples=COVERAGE_SAMPLES, seed=seed, masks=masks), masks=masks)
        covered.append(((found.mean - reference.mean_BC).abs() <= 1.96 * found.standard_error).double())
    covered_RBC = torch.stack(covered)
    top_B1 = reference.mean_BC.argmax(dim=-1, keepdim=True)
    return covered_RBC.mean().item(), covered_RBC.mean(dim=0).gather(1, top_B1).mean().item()


def measure_costs(mc: MonteCarloDropout, moments: MomentPropagation, images_B: Tensor) -> dict[str, float]:
    """Median seconds for one image, by label, on one thread."""
    image = images_B[:1]
    calls: dict[str, Callable[[], object]] = {"moments": lambda: moments.predict(image)}
    for masks in DESIGNS:
        for samples in SAMPLES:
            calls[f"{masks} {samples}"] = lambda masks=masks, samples=samples: mc.sample(
                image, samples=samples, masks=masks
            )
    return interleaved(calls, budget=0.5, label="cost of one image")


def held_out(fashion: FashionMNIST) -> Tensor:
    """Images used to calibrate the embedded network, not to train it."""
    recipe = RECIPES["default"]
    return split_data(fashion.train, images_per_part=recipe.calibration, validate=recipe.validate).calibration.inputs_B[
        :IMAGES
    ]


def draw(found: dict[str, Tensor], seconds: dict[str, float]) -> None:
    """Draw the errors against samples, and that of the mean against time."""
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), layout="constrained")
    for masks in DESIGNS:
        errors_N3 = torch.stack([found[f"{masks} {samples}"] for samples in SAMPLES])
        for ax, column in zip(axes, errors_N3.T, strict=False):
            ax.plot(SAMPLES, column, marker="o", label=masks)
        times = [seconds[f"{masks} {samples}"] * 1e3 for samples in SAMPLES]
        axes[3].plot(times, errors_N3[:, 0], marker="o", label=masks)
    for ax, value in zip(axes, found["moments"].tolist(), strict=False):
        ax.axhline(value, color="tab:green", linestyle="--", label="moments")
    axes[3].plot([seconds["moments"] * 1e3], found["moments"][:1], "D", color="tab:green", label="moments")
    titles = ("mean", "variance", "mutual information", "mean, against time")
    for ax, title in zip(axes, titles, strict=True):
        label = "milliseconds an image" if ax is axes[3] else "samples"
        ax.set(xscale="log", yscale="log", xlabel=label, ylabel="RMSE", title=title)
        ax.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(FOLDER / "error.png", dpi=110)


def main() -> None:
    """Measure, print and write."""
    mpl.use("Agg")
    use_threads(1)
    fashion = load_fashion_mnist()
    network = load_artifact().network
    mc, moments = MonteCarloDropout(network), MomentPropagation(network)
    images_B = fashion.test.inputs_B[:IMAGES]
    reference = compute_reference(mc, images_B)
    found = {
        f"{masks} {samples}": sampling_errors(mc, images_B, reference, samples, masks)
        for samples in track(SAMPLES, "errors", transient=True)
        for masks in DESIGNS
    }
    by_moments = moments.predict(images_B)
    found["moments"] = squared_errors(
        reference, by_moments.mean, by_moments.variance, by_moments.mutual_information
    ).sqrt()
    seconds = measure_costs(mc, moments, images_B)
    text = (
        f"# Error against cost\n\nMade by `make bench`. {machine()}\n\n"
        f"Root mean squared errors over the first {IMAGES} test images, all classes and {len(SEEDS)} seeds, against "
        f"{REFERENCE_SAMPLES:,} independent masks; milliseconds for one image on one thread.\n\n"
    )
    rows = [
        [label, *(f"{value:.5f}" for value in values.tolist()), f"{seconds[label] * 1e3:.3f}"]
        for label, values in found.items()
    ]
    text += table(["masks", "mean", "variance", "mutual information", "ms"], rows)
    text += (
        "\n## Do the standard errors tell the truth?\n\nPart of the intervals of 1.96 standard errors around the mean "
        f"of {COVERAGE_SAMPLES} masks that hold the reference; 0.95 would be right. The held-out images are the first "
        f"{IMAGES} of the default recipe's.\n\n"
    )
    held_out_B = held_out(fashion)
    sets = {"test": (images_B, reference), "held out of training": (held_out_B, compute_reference(mc, held_out_B))}
    rows = [
        [f"{masks}, {name}", *(f"{part:.3f}" for part in coverage(mc, part_B, part_reference, masks))]
        for name, (part_B, part_reference) in sets.items()
        for masks in DESIGNS
    ]
    text += table(["masks, images", "all classes", "most probable class"], rows)
    write("error.md", text)
    draw(found, seconds)
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
