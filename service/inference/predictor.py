"""Predictions for prepared images. No HTTP."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np

from model import Artifact, Moments, Uncertainty, entropy
from model.calibration import Estimator
from service.inference.pixels import Pixels

_LIGHT_MASK_BYTES = 2**16  # of a mask's activations up to which a thousand masks take no noticeable time
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one image.

    Attributes:
        estimator: "eval" without dropout, "masks" over sampled masks, "moments" over all masks without sampling.
        label: name of the most probable class.
        class_index: index of the most probable class in `probabilities`.
        probabilities: class probabilities in class order; except in eval mode, the mean over the masks.
        predictive_entropy: entropy of `probabilities`, in nats.
        uncertainty: uncertainty over the masks, for a batch of this one image; None in eval mode.
        samples: number of sampled masks.
        probs_SBC: class probabilities under each mask, for a batch of this one image; None if nothing is sampled.
        warnings: ways in which the prediction falls short of the request.
    """

    estimator: Estimator
    label: str
    class_index: int
    probabilities: list[float]
    predictive_entropy: float
    uncertainty: Uncertainty | Moments | None = None
    samples: int = 0
    probs_SBC: np.ndarray | None = None
    warnings: tuple[str, ...] = ()

    @property
    def mutual_information(self) -> float:
        """Mutual information of class and masks, in nats; 0 in eval mode."""
        return 0.0 if self.uncertainty is None else self.uncertainty.mutual_information.item()

    @property
    def agreement(self) -> float | None:
        """Fraction of the masks that vote for the predicted class; None if nothing is sampled."""
        if self.probs_SBC is None:
            return None
        votes_S = self.probs_SBC[:, 0].argmax(axis=1)
        return float(np.count_nonzero(votes_S == self.class_index)) / self.samples


@dataclass(frozen=True)
class Predictions:
    """Predictions of one estimator for B images, see `Prediction`.

    Attributes:
        estimator: the estimator.
        classes: names of the classes.
        probs_BC: class probabilities, float64.
        entropy_B: predictive entropies, in nats.
        uncertainty: uncertainty over the masks; None in eval mode.
        samples: number of sampled masks.
        probs_SBC: class probabilities under each mask; None if nothing is sampled.
        warnings: ways in which the predictions fall short of the request.
    """

    estimator: Estimator
    classes: Sequence[str]
    probs_BC: np.ndarray
    entropy_B: np.ndarray
    uncertainty: Uncertainty | Moments | None = None
    samples: int = 0
    probs_SBC: np.ndarray | None = None
    warnings: tuple[str, ...] = ()

    def each(self) -> list[Prediction]:
        """Split into one prediction for each image."""
        images = len(self.probs_BC)
        uncertainties = [None] * images if self.uncertainty is None else _split(self.uncertainty)
        samples = [None] * images if self.probs_SBC is None else np.split(self.probs_SBC, images, axis=1)
        columns = (self.probs_BC.tolist(), self.entropy_B.tolist(), uncertainties, samples)
        return [self._one(*values) for values in zip(*columns, strict=True)]

    def _one(
        self,
        probabilities: list[float],
        predictive_entropy: float,
        uncertainty: Uncertainty | Moments | None,
        probs_S1C: np.ndarray | None,
    ) -> Prediction:
        index = probabilities.index(max(probabilities))
        return Prediction(
            self.estimator,
            self.classes[index],
            index,
            probabilities,
            predictive_entropy,
            uncertainty,
            self.samples,
            probs_S1C,
            self.warnings,
        )


class Predictor:
    """The model behind the service. Bits of a prediction depend on image, samples and seed only, not on the batch.

    Methods take pixels of shape (B, H, W) or (B, H, W, 3), uint8.

    Args:
        artifact: the model to serve.

    Attributes:
        classes: names of the classes.
        input: what the network takes.
        moments_unavailable: why `propagate` can't be used; None if it can.

    Raises:
        ValueError: the model takes other images than its input specification says, or has no dropout to sample.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.classes = artifact.classes
        self._graph = artifact.engine
        self.input = artifact.input
        if self._graph.spec.image != self.input.shape:
            shapes = f"{list(self.input.shape)}, got {list(self._graph.spec.image)}"
            raise ValueError(f"the model must take images of shape {shapes}")
        self._moments = artifact.moments
        self.moments_unavailable = artifact.moments_unavailable

    def share_prefix(self) -> AbstractContextManager[None]:
        """Within this context, prediction and novelty score compute the prefix of the graph once for each image."""
        return self._graph.share_prefix()

    def predict(self, pixels_BHW: Pixels) -> Predictions:
        """Predict in eval mode."""
        probs_BC = self._graph.predict(self.input.normalize(pixels_BHW)).astype(np.float64)
        return Predictions("eval", self.classes, probs_BC, entropy(probs_BC))

    def sample(self, pixels_BHW: Pixels, *, samples: int, seed: int) -> Predictions:
        """Predict with `samples` dropout masks, at least 2, drawn from a seed."""
        probs_SBC, uncertainty = self._graph.sample_and_summarize(self.input.normalize(pixels_BHW), samples, seed)
        return self._over_masks("masks", uncertainty, probs_SBC)

    def sample_until(self, pixels_1HW: Pixels, *, tolerance: float, max_samples: int, seed: int) -> Predictions:
        """Predict one image, sampling masks until the standard error of the predicted class is within the tolerance."""
        probs_S1C, uncertainty = self._graph.sample_until(
            self.input.normalize(pixels_1HW), tolerance=tolerance, max_samples=max_samples, seed=seed
        )
        error = float(uncertainty.standard_error[0, uncertainty.mean[0].argmax()])
        unmet = f"the standard error is {error:.2g} after {max_samples} samples, not {tolerance:g}"
        return self._over_masks("masks", uncertainty, probs_S1C, () if error <= tolerance else (unmet,))

    def propagate(self, pixels_BHW: Pixels) -> Predictions:
        """Predict the mean over all masks without sampling, by moment propagation.

        Raises:
            ValueError: the network does not allow it, see `moments_unavailable`.
        """
        if self._moments is None:
            raise ValueError(self.moments_unavailable)
        return self._over_masks("moments", self._moments.predict(self.input.normalize(pixels_BHW)))

    def warm_up(self) -> None:
        """Run all modes once, to pay their one-time costs, and draw the masks of the default seed."""
        blank = np.zeros((1, *self.input.pixel_shape), dtype=np.uint8)
        self.predict(blank)
        if self._moments is not None:
            self.propagate(blank)
        for samples in (1000, 100) if self._graph.spec.mask_bytes <= _LIGHT_MASK_BYTES else (10,):
            self.sample(blank, samples=samples, seed=0)

    def _over_masks(
        self,
        estimator: Estimator,
        uncertainty: Uncertainty | Moments,
        probs_SBC: np.ndarray | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Predictions:
        probs_BC, entropy_B = uncertainty.mean, uncertainty.predictive_entropy
        samples = 0 if probs_SBC is None else len(probs_SBC)
        return Predictions(estimator, self.classes, probs_BC, entropy_B, uncertainty, samples, probs_SBC, warnings)


def _split(uncertainty: Uncertainty | Moments) -> Sequence[Uncertainty | Moments]:
    """Split the uncertainty of a batch into batches of one image."""
    images = len(uncertainty.mean)
    if images == 1:
        return [uncertainty]
    names = [field.name for field in fields(uncertainty)]
    columns = [np.split(getattr(uncertainty, name), images) for name in names]
    return [type(uncertainty)(**dict(zip(names, ones, strict=True))) for ones in zip(*columns, strict=True)]
