"""Training recipes by name: all choices of a run except its seed."""

from dataclasses import dataclass, field, replace
from typing import Literal

from model import MLPConfig
from training.cnn import CNNConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train the network.

    Attributes:
        architecture: layers and dropout probabilities.
        epochs: passes over the training images.
        batch_size: images of one step.
        optimizer: plain SGD, or AdamW.
        learning_rate: constant for "constant"; the first for "linear"; the peak for "one-cycle" (Smith & Topin 2018,
            arXiv:1708.07120).
        schedule: schedule of the learning rate over the steps; "linear" decreases to 0.
        weight_decay: decoupled, of AdamW.
        initial_std: standard deviation of normal initial weights; None for PyTorch's default, which biases always use.
        flip: whether images are mirrored horizontally with probability one half.
        shift: largest shift in pixels along each axis, applied with probability one half.
        erase: side in pixels of a square at a random place that is made black, with probability one half (DeVries &
            Taylor 2017, arXiv:1708.04552).
        batch_norm: whether the hidden layers of an MLP have batch norm in training, which is folded into their weights
            afterwards.
        masks: number of dropout masks for each image of a step; the layers before dropout are computed once.
        average_decay: of the exponential moving average of weights and batch-norm statistics over steps, which is the
            result; None for the last weights.
        calibration: number of the 60,000 images that are held out for calibration; 0 trains on all images and measures
            epochs on the test images, as the chapter does.
        validate: whether as many images more are held out for validation, and the result is not calibrated.
    """

    architecture: MLPConfig | CNNConfig = field(default_factory=MLPConfig)
    epochs: int
    batch_size: int = 256
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    schedule: Literal["constant", "linear", "one-cycle"]
    weight_decay: float = 0.0
    initial_std: float | None = None
    flip: bool = False
    shift: int = 0
    erase: int = field(default=0, repr=False)  # not in the digests of older results, see `Study.key`
    batch_norm: bool = field(default=False, repr=False)  # likewise
    masks: int = 1
    average_decay: float | None = None
    calibration: int = 0
    validate: bool = False


DEFAULT = Recipe(
    architecture=MLPConfig(dropout=(0.1, 0.3)),
    epochs=200,
    optimizer="adamw",
    learning_rate=3e-3,
    schedule="one-cycle",
    weight_decay=0.05,
    flip=True,
    shift=2,
    batch_norm=True,
    masks=4,
    average_decay=0.999,
    calibration=5_000,
)

RECIPES = {
    # d2l.ai, "Dropout": SGD 0.5, batch 256, 10 epochs, weights from N(0, 0.01) by its `init_weights`.
    "chapter": Recipe(
        epochs=10,
        optimizer="sgd",
        learning_rate=0.5,
        schedule="constant",
        initial_std=0.01,
    ),
    "default": DEFAULT,
    # Where the MLP's images are seen by convolutions; the masks are of the head only, so that many of them cost little.
    "cnn": replace(
        DEFAULT,
        architecture=CNNConfig(),
        epochs=30,
        batch_size=128,
        learning_rate=4e-3,
        erase=8,
        batch_norm=False,
    ),
}
