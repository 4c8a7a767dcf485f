"""Time of a training epoch, compared with the chapter's loop: `python -m benchmarks.epoch`.

Same network, optimiser, batch size and images, in one process, taking turns. The chapter's loop is that of d2l.ai's
`train_ch3`: `torchvision.datasets.FashionMNIST` with `ToTensor` behind a `DataLoader` of 4 workers (here 0 and 2 too),
loss and accuracy added up over the training images, then the accuracy on the test images. Ours measures the same.
"""

import gzip
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from model import build_mlp
from training.data import FILES, load_fashion_mnist
from training.fit import Fit
from training.recipes import RECIPES
from training.vision import torchvision

ROUNDS = 5
WORKERS = (0, 2, 4)
RECIPE = RECIPES["chapter"]


def chapter_epoch(network: nn.Module, root: Path, workers: int) -> Callable[[], object]:
    """Build an epoch as in the chapter."""

    def loader(*, train: bool) -> DataLoader[Any]:
        images = torchvision.datasets.FashionMNIST(root, train=train, transform=torchvision.transforms.ToTensor())
        return DataLoader(images, RECIPE.batch_size, shuffle=train, num_workers=workers)

    train_loader, test_loader = loader(train=True), loader(train=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=RECIPE.learning_rate)

    def correct(logits_BC: Tensor, labels_B: Tensor) -> float:
        return float((logits_BC.argmax(dim=1) == labels_B).sum())

    def epoch() -> tuple[float, float, float]:
        train_loss = train_hits = test_hits = 0.0
        network.train()
        for images_B, labels_B in train_loader:
            logits_BC = network(images_B)
            loss = cross_entropy(logits_BC, labels_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            train_loss += float(loss.detach()) * len(labels_B)
            train_hits += correct(logits_BC, labels_B)
        network.eval()
        with torch.no_grad():
            for images_B, labels_B in test_loader:
                test_hits += correct(network(images_B), labels_B)
        return train_loss, train_hits, test_hits

    return epoch


def torchvision_root(source: Path, folder: Path) -> Path:
    """Place the four files as torchvision expects them, uncompressed."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in FILES:
        compressed = source / f"{file.name}.gz"
        with (
            gzip.open(compressed) if compressed.exists() else (source / file.name).open("rb") as read,
            (raw / file.name).open("wb") as written,
        ):
            shutil.copyfileobj(read, written)
    return folder


def measure(epochs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each epoch over the rounds, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    with Progress(transient=True) as progress:
        task = progress.add_task("epochs", total=ROUNDS * len(epochs))
        for _ in range(ROUNDS):
            for name, epoch in epochs.items():
                start = time.perf_counter()
                epoch()
                seconds[name].append(time.perf_counter() - start)
                progress.advance(task)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure and print a table."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # 4 workers are the chapter's choice, not ours
    fashion = load_fashion_mnist()
    cpu = torch.device("cpu")
    fit = Fit(RECIPE, fashion.train, fashion.test, seed=0, device=cpu)
    with tempfile.TemporaryDirectory() as folder:
        root = torchvision_root(fashion.source, Path(folder))
        ours = "ours: all images as one tensor"
        epochs: dict[str, Callable[[], object]] = {ours: fit.run_epoch}
        for workers in WORKERS:
            network = build_mlp(RECIPE.architecture)
            epochs[f"the chapter's: DataLoader, ToTensor, {workers} workers"] = chapter_epoch(network, root, workers)
        medians = measure(epochs)
    table = Table(title=f"One epoch of 60,000 images, median of {ROUNDS}, {torch.get_num_threads()} threads")
    for column in ("epoch", "seconds", "ratio to ours"):
        table.add_column(column, justify="left" if column == "epoch" else "right")
    for name, median in medians.items():
        table.add_row(name, f"{median:.2f}", f"{median / medians[ours]:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
