"""Measure an artifact on the 10,000 test images: `python -m training.evaluate`."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from model import MonteCarloDropout, entropy, load_artifact, summarize
from model.artifact import write_atomically
from model.dropout import MAX_SEED
from training.data import DataError, Images, load_fashion_mnist

_IMAGES_AT_ONCE = 500

app = typer.Typer(add_completion=False)
console = Console(highlight=False, soft_wrap=True, markup=False)
errors = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)


def evaluate(network: nn.Sequential, images: Images, *, samples: int, seed: int) -> dict[str, Any]:
    """Measure the eval-mode prediction and the mean over dropout masks on labelled images.

    Args:
        network: from images in [0, 1] to logits.
        images: test images.
        samples: masks of the Monte-Carlo prediction.
        seed: of the masks.

    Returns:
        For "eval" and "mc": accuracy in [0, 1], mean negative log-likelihood of the label and mean predictive entropy
        in nats; for "mc" also the mean mutual information, and samples and seed.
    """
    mc = MonteCarloDropout(network)
    eval_probs: list[Tensor] = []
    mc_probs: list[Tensor] = []
    information: list[Tensor] = []
    parts = images.inputs_B.split(_IMAGES_AT_ONCE)
    for part in track(parts, f"{len(images):,} images, {samples} masks", console=console, transient=True):
        eval_probs.append(mc.predict(part).double())
        summary = summarize(mc.sample(part, samples=samples, seed=seed))
        mc_probs.append(summary.mean)
        information.append(summary.mutual_information)
    return {
        "eval": _score(torch.cat(eval_probs), images.labels_B),
        "mc": {
            "samples": samples,
            "seed": seed,
            **_score(torch.cat(mc_probs), images.labels_B),
            "mutual_information": torch.cat(information).mean().item(),
        },
    }


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print what `evaluate` returned as a table."""
    masks = metrics["mc"]
    table = Table(title="10,000 test images", caption=f"mc: {masks['samples']} masks, seed {masks['seed']}; in nats")
    for column in ("mode", "accuracy", "NLL", "entropy", "mutual information"):
        table.add_column(column, justify="right")
    for mode, row in metrics.items():
        numbers = [row["accuracy"], row["nll"], row["entropy"], row.get("mutual_information")]
        table.add_row(mode, *("" if number is None else f"{number:.4f}" for number in numbers))
    console.print(table)


def _score(probs_BC: Tensor, labels_B: Tensor) -> dict[str, float]:
    right_B = probs_BC.argmax(dim=-1) == labels_B
    likelihood_B = probs_BC.gather(1, labels_B[:, None]).squeeze(1)
    return {
        "accuracy": right_B.double().mean().item(),
        "nll": -likelihood_B.log().mean().item(),
        "entropy": entropy(probs_BC).mean().item(),
    }


@app.command()
def main(
    artifact: Annotated[
        Path | None, typer.Argument(help="Folder of the artifact; the embedded default if none.")
    ] = None,
    *,
    samples: Annotated[int, typer.Option(min=2, help="Dropout masks.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the masks.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder of Fashion-MNIST; else found as for training.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file too.")] = None,
) -> None:
    """Measure accuracy, likelihood and uncertainty of an artifact on the test images of Fashion-MNIST."""
    torch.set_num_threads(1)  # one image at a time: too small to share
    try:
        if out is not None and not out.parent.is_dir():
            raise FileNotFoundError(f"--out: there is no folder {out.parent}")
        metrics = evaluate(load_artifact(artifact).network, load_fashion_mnist(data).test, samples=samples, seed=seed)
        if out is not None:
            write_atomically(out, (json.dumps(metrics, indent=2) + "\n").encode())
    except (DataError, OSError, TypeError, ValueError) as error:
        errors.print(f"error: {error}", style="bold red")
        raise typer.Exit(1) from error
    print_metrics(metrics)


if __name__ == "__main__":
    app()
