"""Images and measurements that studies share, in two sizes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from training.data import DataError, Images, as_inputs, load_fashion_mnist
from training.metrics import scores, separation
from training.ood import fetch, read_images
from training.recipes import RECIPES, Recipe
from training.studies.stack import Predictions, Stack

_MEASURED = 10_000  # training images that the loss on them is measured on


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done.

    Attributes:
        train: training images, the first ones.
        test: test images, and MNIST's digits, the first ones.
        passes: masks of a Monte-Carlo prediction.
        masks: numbers of masks that are compared.
        recipe: how networks are trained, but for the number of epochs.
    """

    train: int
    test: int
    passes: int
    masks: tuple[int, ...]
    recipe: Recipe


# The chapter's recipe from PyTorch's initial weights: from its N(0, 0.01) the first epoch is a plateau.
_RECIPE = replace(RECIPES["chapter"], initial_std=None)
FULL = Scale(train=60_000, test=10_000, passes=50, masks=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), recipe=_RECIPE)
# So few images that overfitting shows within half a minute.
QUICK = Scale(
    train=3_000,
    test=2_000,
    passes=20,
    masks=(1, 2, 5, 10, 20, 50, 100),
    recipe=replace(_RECIPE, batch_size=32, learning_rate=0.2),
)


# Titles of what `quality` measures, in tables.
QUALITY = {
    "accuracy": "accuracy", "train - test": "gap", "NLL": "nll", "MC NLL": "mc nll", "ECE": "ece", "MC ECE": "mc ece",
    "AUROC, entropy": "auroc entropy", "AUROC, information": "auroc information",
}  # fmt: skip


class Measurement(NamedTuple):
    """A number that was measured; see `table.Row`."""

    configuration: str
    metric: str
    at: int
    value: float


@dataclass(frozen=True)
class Lab:
    """The images of a scale, with MNIST's digits as what is no clothing."""

    scale: Scale
    train: Images
    test: Images
    digits: Tensor

    @cached_property
    def train_inputs(self) -> Tensor:
        """Training images to measure on, as vectors."""
        return self.train[:_MEASURED].inputs_B.flatten(1)

    @cached_property
    def test_inputs(self) -> Tensor:
        """Test images as vectors."""
        return self.test.inputs_B.flatten(1)


def open_lab(scale: Scale, *, data: Path | None, mnist: Path | None) -> Lab:
    """Load the images.

    Args:
        scale: how many.
        data: folder of Fashion-MNIST; else found.
        mnist: file of MNIST's test images; else from the cache, or downloaded.

    Raises:
        DataError: they aren't to be had.
    """
    fashion = load_fashion_mnist(data)
    digits_BHW = read_images(mnist) if mnist else _fetch_digits()
    digits = as_inputs(torch.from_numpy(digits_BHW[: scale.test].copy())).flatten(1)
    return Lab(scale, fashion.train[: scale.train], fashion.test[: scale.test], digits)


def _fetch_digits() -> np.ndarray:
    try:
        return fetch("MNIST")
    except DataError as error:
        raise DataError(f"{error}; name a file of its test images (t10k-images-idx3-ubyte.gz) with --mnist") from error


def losses(stack: Stack, lab: Lab, epoch: int) -> Iterator[Measurement]:
    """Measure loss (nats) and accuracy without noise, on training and test images, after an epoch."""
    for part, inputs_BU, images in (
        ("train", lab.train_inputs, lab.train[:_MEASURED]),
        ("test", lab.test_inputs, lab.test),
    ):
        probs_KBC = stack.predict(inputs_BU).probs_KBC
        for variant, probs_BC in zip(stack.variants, probs_KBC, strict=True):
            yield Measurement(variant.name, f"{part} loss", epoch, loss(probs_BC, images.labels_B))
            yield Measurement(variant.name, f"{part} accuracy", epoch, accuracy(probs_BC, images.labels_B))


def loss(probs_BC: Tensor, labels_B: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return float(nll_loss(probs_BC.log(), labels_B))


def accuracy(probs_BC: Tensor, labels_B: Tensor) -> float:
    """Part that is right."""
    return float((probs_BC.argmax(dim=-1) == labels_B).double().mean())


def quality(stack: Stack, lab: Lab) -> Iterator[Measurement]:
    """Measure what trained networks are worth.

    "accuracy", "nll" and "ece" without noise, "gap" (training accuracy less test accuracy); the same with "mc " before
    for the mean over masks; AUROC against MNIST of the entropy without noise ("auroc eval"), of that over masks ("auroc
    entropy") and of the mutual information ("auroc information").
    """
    train_KBC = stack.predict(lab.train_inputs).probs_KBC
    plain, plain_digits = stack.predict(lab.test_inputs), stack.predict(lab.digits)
    noisy = stack.predict(lab.test_inputs, passes=lab.scale.passes)
    noisy_digits = stack.predict(lab.digits, passes=lab.scale.passes)
    labels_B = lab.test.labels_B.numpy()
    for k, variant in enumerate(stack.variants):
        found = {}
        for mode, predictions in {"": plain, "mc ": noisy}.items():
            scored = scores(predictions.probs_KBC[k].numpy(), labels_B)
            found |= {f"{mode}{name}": scored[name] for name in ("accuracy", "nll", "ece")}
        found["gap"] = accuracy(train_KBC[k], lab.train.labels_B[:_MEASURED]) - found["accuracy"]
        found["auroc eval"] = _auroc(plain.predictive_KB[k], plain_digits.predictive_KB[k])
        found["auroc entropy"] = _auroc(noisy.predictive_KB[k], noisy_digits.predictive_KB[k])
        found["auroc information"] = _auroc(_information(noisy, k), _information(noisy_digits, k))
        yield from (Measurement(variant.name, metric, 0, value) for metric, value in found.items())


def _information(found: Predictions, k: int) -> Tensor:
    return found.predictive_KB[k] - found.expected_KB[k]


def _auroc(inside_B: Tensor, outside_B: Tensor) -> float:
    return separation(inside_B.numpy(), outside_B.numpy())["auroc"]
