"""One prepared image -> one prediction. No HTTP."""

from dataclasses import dataclass

import numpy as np
import torch

from model import Artifact, MonteCarloDropout, Uncertainty, entropy, summarize
from service.images import SIDE, Pixels


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image.

    Attributes:
        label: name of the most probable class.
        class_index: its position in `probabilities`.
        probabilities: of each class, in class order; the mean over the masks if there are any.
        predictive_entropy: of `probabilities`, in nats.
        uncertainty: the summary of the masks for a batch of this one image; None in eval mode.
    """

    label: str
    class_index: int
    probabilities: list[float]
    predictive_entropy: float
    uncertainty: Uncertainty | None

    @property
    def confidence(self) -> float:
        """Probability of the most probable class."""
        return self.probabilities[self.class_index]


class Predictor:
    """The model behind the service: the same image, samples and seed give the same bits.

    Args:
        artifact: the model to serve.

    Raises:
        ValueError: the model takes other images, or has no dropout to sample.
    """

    def __init__(self, artifact: Artifact) -> None:
        shape = artifact.card["architecture"]["image"]
        if shape != [1, SIDE, SIDE]:
            raise ValueError(f"the model must take images of shape {[1, SIDE, SIDE]}, got {shape}")
        self.classes = artifact.classes
        self._mc = MonteCarloDropout(artifact.network)

    def predict(self, pixels: Pixels, *, samples: int, seed: int) -> Prediction:
        """Predict one image: in eval mode if `samples` is 0, else by that many dropout masks.

        Args:
            pixels: (28, 28) uint8, light on dark.
            samples: 0, or at least 2.
            seed: of the masks.
        """
        image_B = (torch.tensor(pixels) / 255).reshape(1, 1, *pixels.shape)
        if samples == 0:
            return self._prediction(self._mc.predict(image_B).double(), None)
        uncertainty = summarize(self._mc.sample(image_B, samples=samples, seed=seed))
        return self._prediction(uncertainty.mean, uncertainty)

    def warm_up(self) -> None:
        """Take the first-time costs of both modes before a client does."""
        blank = np.zeros((SIDE, SIDE), dtype=np.uint8)
        for samples in (0, 100):
            self.predict(blank, samples=samples, seed=0)

    def _prediction(self, probs_BC: torch.Tensor, uncertainty: Uncertainty | None) -> Prediction:
        (probs_C,) = probs_BC
        index = int(probs_C.argmax())
        return Prediction(self.classes[index], index, probs_C.tolist(), entropy(probs_C).item(), uncertainty)
