"""Monte Carlo dropout: predictions of one network under many dropout masks."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from model.adaptive import sample_until
from model.masks import Masks, check_sampling
from model.network.live import LiveDropout, LiveEnsemble
from model.network.sequential import NotSequentialError, SequentialDropout
from model.uncertainty import Uncertainty, summarize


class MonteCarloDropout:
    """Eval-mode prediction and Monte Carlo dropout of a network (Gal & Ghahramani 2016, arXiv:1506.02142).

    A mask defines one thinned sub-network; it is keyed by (seed, sample, use of dropout, unit) and shared by all
    images. What comes before the first active dropout runs once for each image. The network's train/eval mode does not
    affect its dropout and is never changed. No global random state is used. Each image is computed separately, so that
    its result does not depend on the other images of a batch.

    Args:
        network: from images (B, ...) to logits (B, C), with dropout of p > 0: layers, functions
            (`F.dropout(x, p, self.training)`), or inside attention. Layers in `nn.Sequential` are faster. Or a list
            of M such networks of one architecture, an ensemble: eval mode averages their probabilities, and sample s is
            a pass of network s mod M, as in `Graph`.

    Raises:
        TypeError: the network contains dropout that masks can't replace, or ends in probabilities instead of logits.
        ValueError: no dropout is active in a sequence of layers, or there are no networks.

    Attributes:
        members: number M of networks.
    """

    def __init__(self, network: nn.Module | Sequence[nn.Module]) -> None:
        self._network = network
        self.members = 1 if isinstance(network, nn.Module) else len(network)
        self._passes: SequentialDropout | LiveDropout | LiveEnsemble
        if not isinstance(network, nn.Module):
            self._passes = LiveEnsemble(network)
            return
        try:
            self._passes = SequentialDropout(network)  # type: ignore[arg-type]
        except NotSequentialError:
            self._passes = LiveDropout(network)

    def __reduce__(self) -> tuple[type, tuple[nn.Module | Sequence[nn.Module]]]:
        """Pickle or copy only the network; everything else is derived from it."""
        return type(self), (self._network,)

    def predict(self, images_B: Tensor | np.ndarray) -> Tensor:
        """Predict without dropout, as in eval mode.

        Args:
            images_B: floating-point images of shape (B, ...).

        Returns:
            Class probabilities `probs_BC`, of shape (B, C).

        Raises:
            TypeError: the images are not floating-point.
            ValueError: a layer in train mode would make the result random or dependent on the batch, or the network
                does not return logits.
        """
        return self._passes.predict(images_B)

    def sample(
        self,
        images_B: Tensor | np.ndarray,
        *,
        samples: int = 100,
        seed: int = 0,
        masks: Masks = "stratified",
        gradients: bool = False,
    ) -> Tensor:
        """Predict under each of the first `samples` dropout masks of a seed.

        Memory beyond input and result is bounded: the masks are processed in chunks, image by image.

        Args:
            images_B: floating-point images of shape (B, ...).
            samples: number S of masks, at least 2.
            seed: 0 .. 2**64 - 1; the same seed gives the same masks on every system.
            masks: the design, see `keep_masks`. The mean over stratified masks is as precise as that over several times
                as many independent masks.
            gradients: whether the result has gradients towards the parameters; it then takes longer.

        Returns:
            Class probabilities of each pass, `probs_SBC`, of shape (S, B, C).

        Raises:
            TypeError: the images are not floating-point, or the seed is not an integer.
            ValueError: fewer than 2 samples, a seed out of range, an unknown design, no dropout is reached, or
                as in `predict`.
        """
        check_sampling(samples, seed, masks)
        if gradients:
            live = LiveDropout(self._network) if isinstance(self._network, nn.Module) else LiveEnsemble(self._network)
            return live.sample(images_B, samples=samples, seed=seed, masks=masks, gradients=True)
        return self._passes.sample(images_B, samples=samples, seed=seed, masks=masks)

    def sample_until(
        self,
        images_B: Tensor | np.ndarray,
        *,
        tolerance: float = 0.005,
        max_samples: int = 1000,
        seed: int = 0,
        masks: Masks = "stratified",
    ) -> tuple[Tensor, Uncertainty]:
        """Predict under as many masks as the required standard error needs.

        The number of masks starts at 20 and grows, as the standard error predicts, until the standard error of the
        most probable class of every image is within the tolerance, or `max_samples` is reached. The result is that of
        `sample` with the final number.

        Args:
            images_B: floating-point images of shape (B, ...).
            tolerance: largest acceptable standard error, above 0.
            max_samples: largest number of masks, at least 2.
            seed: as in `sample`.
            masks: as in `sample`.

        Returns:
            `probs_SBC`, and their summary with the standard errors reached.

        Raises:
            TypeError: as in `sample`.
            ValueError: a tolerance of 0 or less, or as in `sample`.
        """

        def sample(samples: int) -> tuple[Tensor, Uncertainty]:
            probs_SBC = self.sample(images_B, samples=samples, seed=seed, masks=masks)
            return probs_SBC, summarize(probs_SBC, masks=masks, members=self.members)

        return sample_until(sample, tolerance=tolerance, max_samples=max_samples)
