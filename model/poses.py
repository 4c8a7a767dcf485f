"""The view of the novelty score for poses: whether an image is ordinary, or turned, moved, scaled or covered."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from model.session import open_session

Array = np.ndarray

NAME = "poses"
_TOGETHER = 256  # images


@dataclass(frozen=True)
class PoseView:
    """A small network, as a graph, that tells ordinary images from transformed ones.

    It maps images (B, C, H, W), and features (B, F) of the main network if it takes them, to 1 + M logits: of an
    ordinary image, and of M kinds of transformed images. With their probabilities p_0 and p_1 ... p_M,

        score = log(p_1 + ... + p_M) - log p_0

    Networks that learn to recognize transformations detect out-of-distribution images (Golan & El-Yaniv 2018,
    arXiv:1805.10917; Hendrycks et al. 2019, arXiv:1906.12340).

    Attributes:
        content: the graph, an ONNX file.
        median: median of the score over calibration images, which becomes 0.
        high: a high quantile of the score over calibration images.
        scaled_high: what `high` becomes.
        ordinary: the variations that count as ordinary, by name, for the card.
    """

    content: bytes
    median: float
    high: float
    scaled_high: float
    ordinary: Mapping[str, Any]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the session out of copies, which open their own."""
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    def check(self, image: tuple[int, ...], features: int = 0) -> None:
        """Check that the graph takes images of a shape, (C, H, W), and perhaps so many features.

        Raises:
            ValueError: the graph can't be read, or is for other images or features.
        """
        inputs, outputs = (
            [(one.name, *one.shape[1:]) for one in found]
            for found in (self._session.get_inputs(), self._session.get_outputs())
        )
        taken = [("image", *image)], [("image", *image), ("features", features)]
        if inputs not in taken or [name for name, *_ in outputs] != ["logits"] or len(outputs[0]) != 2:
            raise ValueError(f"{NAME}: expected a graph from image {image} to logits, got {inputs} -> {outputs}")
        if outputs[0][1] < 2:
            raise ValueError(f"{NAME}: expected 2 logits or more, got {outputs[0][1]}")

    def score(self, images_B: Array, features_BF: Array | None = None) -> Array:
        """Score images, (B,). A score does not depend on the other images of the batch.

        Args:
            images_B: float32 images of shape (B, C, H, W), as the main network takes them.
            features_BF: what its last layer takes in eval mode, float32; needed if the graph takes features.
        """
        return self.scaled(self.log_odds(images_B, features_BF))

    def scaled(self, log_odds_B: Array) -> Array:
        """Scale log-odds (B,) to scores (B,)."""
        scaled_B: Array = (log_odds_B - self.median) / (self.high - self.median) * self.scaled_high
        return scaled_B

    def log_odds(self, images_B: Array, features_BF: Array | None = None) -> Array:
        """The score before it is scaled, (B,)."""
        inputs, together = {"image": images_B}, _TOGETHER
        if self._takes_features:
            if features_BF is None:
                raise ValueError(f"{NAME}: the features of the images are needed")
            inputs["features"], together = features_BF, 1  # the rounding of long sums depends on the size of a batch
        log_odds_B = np.empty(len(images_B))
        for first in range(0, len(images_B), together):
            rows = slice(first, first + together)
            (logits_BL,) = self._session.run(["logits"], {name: one_B[rows] for name, one_B in inputs.items()})
            log_odds_B[rows] = np.logaddexp.reduce(logits_BL[:, 1:], axis=1) - logits_BL[:, 0]
        return log_odds_B

    def arrays(self) -> dict[str, Array]:
        """Return the graph as bytes, for a file of arrays."""
        return {NAME: np.frombuffer(self.content, np.uint8)}

    def to_json(self) -> dict[str, Any]:
        """Return all but the graph, for the card."""
        return {"scale": [self.median, self.high, self.scaled_high], "ordinary": dict(self.ordinary)}

    @classmethod
    def from_parts(cls, fields: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Build a view from the results of `to_json` and `arrays`.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or invalid.
        """
        median, high, scaled_high = map(float, fields["scale"])
        if not (high > median and scaled_high > 0):
            raise ValueError(f"{NAME}: expected a scale that rises from its median, got {fields['scale']}")
        return cls(arrays[NAME].tobytes(), median, high, scaled_high, dict(fields["ordinary"]))

    @cached_property
    def _takes_features(self) -> bool:
        return len(self._session.get_inputs()) > 1

    @cached_property
    def _session(self) -> Any:
        return open_session(NAME, self.content)
