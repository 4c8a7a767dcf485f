"""Prepared images -> predictions. No HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np
import torch

from model import Artifact, MomentPropagation, Moments, MonteCarloDropout, Uncertainty, entropy, summarize
from model.calibration import Estimator
from service.inference.pixels import SIDE, Pixels

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image.

    Attributes:
        estimator: "eval" of the whole network, "masks" over sampled masks, "moments" over all masks without sampling.
        label: name of the most probable class.
        class_index: its position in `probabilities`.
        probabilities: of each class, in class order; the mean over the masks but in eval mode.
        predictive_entropy: of `probabilities`, in nats.
        uncertainty: over the masks, for a batch of this one image; None in eval mode.
        samples: how many masks were sampled.
        probs_SBC: class probabilities under each of them, for a batch of this one image.
        warnings: what makes this less than what was asked for.
    """

    estimator: Estimator
    label: str
    class_index: int
    probabilities: list[float]
    predictive_entropy: float
    uncertainty: Uncertainty | Moments | None = None
    samples: int = 0
    probs_SBC: torch.Tensor | None = None
    warnings: tuple[str, ...] = ()

    @property
    def mutual_information(self) -> float:
        """In nats; 0 in eval mode."""
        return 0.0 if self.uncertainty is None else self.uncertainty.mutual_information.item()

    @property
    def agreement(self) -> float | None:
        """Part of the masks whose most probable class is the one that is predicted; None where nothing is sampled."""
        if self.probs_SBC is None:
            return None
        votes_S = self.probs_SBC.numpy()[:, 0].argmax(axis=1)
        return float(np.count_nonzero(votes_S == self.class_index)) / self.samples


@dataclass(frozen=True)
class Predictions:
    """What the model says about B images in one way, see `Prediction`.

    Attributes:
        estimator: of all.
        classes: their names.
        probs_BC: class probabilities, float64.
        entropy_B: of these, in nats.
        uncertainty: over the masks; None in eval mode.
        samples: how many masks were sampled.
        probs_SBC: class probabilities under each of them.
        warnings: what makes all of them less than what was asked for.
    """

    estimator: Estimator
    classes: Sequence[str]
    probs_BC: np.ndarray
    entropy_B: np.ndarray
    uncertainty: Uncertainty | Moments | None = None
    samples: int = 0
    probs_SBC: torch.Tensor | None = None
    warnings: tuple[str, ...] = ()

    def each(self) -> list[Prediction]:
        """Tell of each image alone."""
        images = len(self.probs_BC)
        found = [None] * images if self.uncertainty is None else _each(self.uncertainty)
        passes = [None] * images if self.probs_SBC is None else torch.split(self.probs_SBC, 1, dim=1)
        return [
            self._one(*one) for one in zip(self.probs_BC.tolist(), self.entropy_B.tolist(), found, passes, strict=True)
        ]

    def _one(
        self,
        probabilities: list[float],
        predictive_entropy: float,
        found: Uncertainty | Moments | None,
        probs_S1C: torch.Tensor | None,
    ) -> Prediction:
        index = probabilities.index(max(probabilities))
        return Prediction(
            self.estimator,
            self.classes[index],
            index,
            probabilities,
            predictive_entropy,
            found,
            self.samples,
            probs_S1C,
            self.warnings,
        )


class Predictor:
    """The model behind the service: the same image, samples and seed give the same bits, whatever comes with it.

    Methods take pixels of shape (B, 28, 28), uint8, light on dark.

    Args:
        artifact: the model to serve.

    Raises:
        TypeError: the model is not a chain of linear layers, ReLU and dropout.
        ValueError: the model takes other images, has no dropout to sample, or too many classes.
    """

    def __init__(self, artifact: Artifact) -> None:
        shape = artifact.card["architecture"]["image"]
        if shape != [1, SIDE, SIDE]:
            raise ValueError(f"the model must take images of shape {[1, SIDE, SIDE]}, got {shape}")
        self.classes = artifact.classes
        self._masks = MonteCarloDropout(artifact.network)
        self._moments = MomentPropagation(artifact.network)

    def predict(self, pixels_BHW: Pixels) -> Predictions:
        """Predict in eval mode."""
        probs_BC = self._masks.predict(_as_inputs(pixels_BHW)).double()
        return Predictions("eval", self.classes, probs_BC.numpy(), entropy(probs_BC).numpy())

    def sample(self, pixels_BHW: Pixels, *, samples: int, seed: int) -> Predictions:
        """Predict by `samples` dropout masks of a seed, at least 2."""
        probs_SBC = self._masks.sample(_as_inputs(pixels_BHW), samples=samples, seed=seed)
        return self._over_masks("masks", summarize(probs_SBC), probs_SBC)

    def sample_until(self, pixels_1HW: Pixels, *, tolerance: float, max_samples: int, seed: int) -> Predictions:
        """Predict one image by as many masks as bring the standard error of its class within the tolerance."""
        probs_S1C, found = self._masks.sample_until(
            _as_inputs(pixels_1HW), tolerance=tolerance, max_samples=max_samples, seed=seed
        )
        error = found.standard_error[0, found.mean[0].numpy().argmax()].item()
        unmet = f"the standard error is {error:.2g} after {max_samples} samples, not {tolerance:g}"
        return self._over_masks("masks", found, probs_S1C, () if error <= tolerance else (unmet,))

    def propagate(self, pixels_BHW: Pixels) -> Predictions:
        """Predict over all masks by their moments."""
        return self._over_masks("moments", self._moments.predict(_as_inputs(pixels_BHW)))

    def warm_up(self) -> None:
        """Take the first-time costs of all modes before a client does, and draw the masks of the default seed."""
        blank = np.zeros((1, SIDE, SIDE), dtype=np.uint8)
        self.predict(blank)
        self.propagate(blank)
        for samples in (1000, 100):
            self.sample(blank, samples=samples, seed=0)

    def _over_masks(
        self,
        estimator: Estimator,
        found: Uncertainty | Moments,
        probs_SBC: torch.Tensor | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Predictions:
        probs_BC, entropy_B = found.mean.numpy(), found.predictive_entropy.numpy()
        samples = 0 if probs_SBC is None else len(probs_SBC)
        return Predictions(estimator, self.classes, probs_BC, entropy_B, found, samples, probs_SBC, warnings)


def _each(found: Uncertainty | Moments) -> Sequence[Uncertainty | Moments]:
    """Split what was found of a batch into batches of one image."""
    if len(found.mean) == 1:
        return [found]
    names = [field.name for field in fields(found)]
    columns = [torch.split(getattr(found, name), 1) for name in names]
    return [type(found)(**dict(zip(names, ones, strict=True))) for ones in zip(*columns, strict=True)]


def _as_inputs(pixels_BHW: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels_BHW[:, None] / np.float32(255))
