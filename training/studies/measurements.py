"""Images and measurements that the studies share, at two scales."""

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
from training.metrics import classification_metrics, detection_metrics
from training.ood import download_images, read_images
from training.recipes import RECIPES, Recipe
from training.studies.stack import Predictions, Stack

_MEASURED_IMAGES = 10_000  # training images on which the training loss is measured


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Amount of data and masks.

    Attributes:
        train: number of training images, from the start.
        test: number of test images and of MNIST's digits, from the start.
        passes: number of masks of a Monte Carlo prediction.
        masks: numbers of masks that are compared.
        recipe: training recipe, except for the number of epochs.
    """

    train: int
    test: int
    passes: int
    masks: tuple[int, ...]
    recipe: Recipe


# The chapter's recipe with PyTorch's initial weights: with its N(0, 0.01) the loss hardly falls in the first epoch.
_RECIPE = replace(RECIPES["chapter"], initial_std=None)
FULL = Scale(train=60_000, test=10_000, passes=50, masks=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), recipe=_RECIPE)
# Few images, so that overfitting is visible within half a minute.
QUICK = Scale(
    train=3_000,
    test=2_000,
    passes=20,
    masks=(1, 2, 5, 10, 20, 50, 100),
    recipe=replace(_RECIPE, batch_size=32, learning_rate=0.2),
)


# Column titles of the metrics of `quality`.
QUALITY = {
    "accuracy": "accuracy", "train - test": "gap", "NLL": "nll", "MC NLL": "mc nll", "ECE": "ece", "MC ECE": "mc ece",
    "AUROC, entropy": "auroc entropy", "AUROC, information": "auroc information",
}  # fmt: skip


class Measurement(NamedTuple):
    """A measured number; see `table.Row`."""

    configuration: str
    metric: str
    at: int
    value: float


@dataclass(frozen=True)
class StudyData:
    """The images of a scale; MNIST's digits serve as out-of-distribution images."""

    scale: Scale
    train: Images
    test: Images
    digits: Tensor

    @cached_property
    def train_inputs(self) -> Tensor:
        """Training images for measurements, as vectors."""
        return self.train[:_MEASURED_IMAGES].inputs_B.flatten(1)

    @cached_property
    def test_inputs(self) -> Tensor:
        """Test images as vectors."""
        return self.test.inputs_B.flatten(1)


def load_study_data(scale: Scale, *, data: Path | None, mnist: Path | None) -> StudyData:
    """Load the images.

    Args:
        scale: number of images.
        data: folder of Fashion-MNIST; None to search for it.
        mnist: file of MNIST's test images; None to use the cache or download them.

    Raises:
        DataError: the images can't be loaded.
    """
    fashion = load_fashion_mnist(data)
    digits_BHW = read_images(mnist) if mnist else _download_digits()
    digits = as_inputs(torch.from_numpy(digits_BHW[: scale.test].copy())).flatten(1)
    return StudyData(scale, fashion.train[: scale.train], fashion.test[: scale.test], digits)


def _download_digits() -> np.ndarray:
    try:
        return download_images("MNIST")
    except DataError as error:
        raise DataError(f"{error}; name a file of its test images (t10k-images-idx3-ubyte.gz) with --mnist") from error


def losses(stack: Stack, data: StudyData, epoch: int) -> Iterator[Measurement]:
    """Measure loss (nats) and accuracy without noise on training and test images after an epoch."""
    for part, inputs_BU, images in (
        ("train", data.train_inputs, data.train[:_MEASURED_IMAGES]),
        ("test", data.test_inputs, data.test),
    ):
        probs_KBC = stack.predict(inputs_BU).probs_KBC
        for variant, probs_BC in zip(stack.variants, probs_KBC, strict=True):
            yield Measurement(variant.name, f"{part} loss", epoch, loss(probs_BC, images.labels_B))
            yield Measurement(variant.name, f"{part} accuracy", epoch, accuracy(probs_BC, images.labels_B))


def loss(probs_BC: Tensor, labels_B: Tensor) -> float:
    """Compute the mean cross-entropy in nats."""
    return float(nll_loss(probs_BC.log(), labels_B))


def accuracy(probs_BC: Tensor, labels_B: Tensor) -> float:
    """Compute the fraction of correct predictions."""
    return float((probs_BC.argmax(dim=-1) == labels_B).double().mean())


def quality(stack: Stack, data: StudyData) -> Iterator[Measurement]:
    """Measure the quality of trained networks.

    "accuracy", "nll" and "ece" without noise, and with the prefix "mc " for the mean over masks; "gap" (training
    accuracy minus test accuracy); AUROC against MNIST for the entropy without noise ("auroc eval"), the entropy of the
    mean over masks ("auroc entropy") and the mutual information ("auroc information").
    """
    train_KBC = stack.predict(data.train_inputs).probs_KBC
    plain, plain_digits = stack.predict(data.test_inputs), stack.predict(data.digits)
    mc = stack.predict(data.test_inputs, passes=data.scale.passes)
    mc_digits = stack.predict(data.digits, passes=data.scale.passes)
    labels_B = data.test.labels_B.numpy()
    for k, variant in enumerate(stack.variants):
        metrics = {}
        for mode, predictions in {"": plain, "mc ": mc}.items():
            scored = classification_metrics(predictions.probs_KBC[k].numpy(), labels_B)
            metrics |= {f"{mode}{name}": scored[name] for name in ("accuracy", "nll", "ece")}
        metrics["gap"] = accuracy(train_KBC[k], data.train.labels_B[:_MEASURED_IMAGES]) - metrics["accuracy"]
        metrics["auroc eval"] = _auroc(plain.predictive_KB[k], plain_digits.predictive_KB[k])
        metrics["auroc entropy"] = _auroc(mc.predictive_KB[k], mc_digits.predictive_KB[k])
        metrics["auroc information"] = _auroc(_information(mc, k), _information(mc_digits, k))
        yield from (Measurement(variant.name, metric, 0, value) for metric, value in metrics.items())


def _information(metrics: Predictions, k: int) -> Tensor:
    return metrics.predictive_KB[k] - metrics.expected_KB[k]


def _auroc(inside_B: Tensor, outside_B: Tensor) -> float:
    return detection_metrics(inside_B.numpy(), outside_B.numpy())["auroc"]
