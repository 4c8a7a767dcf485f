"""Moment propagation through live torch modules."""

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor, nn

from model.kinds import ArrayOrTensor
from model.moments import ChainMoments, Moments, point_count
from model.network.chain import LiveChain, is_chain_layer
from model.network.layers import Structure, as_images, layers_of, split_at_first_dropout


class MomentPropagation:
    """Moments of a live network's predictions over all masks; see `model.moments.ChainMoments`.

    Args:
        network: `nn.Sequential` of `nn.Flatten`, `nn.Linear`, `nn.ReLU` and `nn.Dropout` from images (B, ...) to
            logits (B, C).

    Raises:
        TypeError: the network contains another kind of layer; the message names it.
        ValueError: no dropout is active, or there are more than 100 classes.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self._network = network
        self._read()

    def __reduce__(self) -> tuple[type, tuple[nn.Sequential]]:
        """Pickle or copy only the network; everything else is derived from it."""
        return type(self), (self._network,)

    def _read(self) -> None:
        """Read the current layers of the network."""
        layers = layers_of(self._network, "MomentPropagation")
        self._structure = Structure(self._network)
        for name, layer in layers:
            if not is_chain_layer(layer):
                raise TypeError(
                    f"layer {name}: moments pass through nn.Flatten, nn.Linear, nn.ReLU and nn.Dropout without hooks, "
                    f"not {type(layer).__name__}"
                )
        last = layers[-1][1]
        if not isinstance(last, nn.Linear):
            raise TypeError(f"the network must end in logits from an nn.Linear, not {type(last).__name__}")
        modules = [layer for _, layer in layers]
        split_at_first_dropout(modules)
        self._chain = LiveChain(modules)
        self._moments = ChainMoments(self._chain, sobol_points(last.out_features))

    def predict(self, images_B: ArrayOrTensor) -> Moments:
        """Predict the moments of the class probabilities over all masks.

        Args:
            images_B: floating-point images of shape (B, ...).

        Returns:
            Moments of each image, as tensors.

        Raises:
            TypeError: the images are not floating-point, or a layer's type or hooks have changed.
            ValueError: an image is not finite, or does not match the layers.
        """
        if not self._structure.is_current():
            self._read()
        if not self._chain.is_unchanged():
            raise TypeError("a layer's hooks or type have changed since this MomentPropagation was created")
        images_B = as_images(images_B, self._structure.parameter)
        if images_B.dtype is torch.bfloat16:  # not a NumPy dtype
            images_B = images_B.float()
        moments = self._moments.predict(images_B.numpy(force=True))
        return Moments(**{field.name: torch.from_numpy(getattr(moments, field.name)) for field in fields(moments)})


def sobol_points(classes: int) -> np.ndarray:
    """Draw scrambled Sobol' points for the logits of so many classes: (P, C), float64."""
    engine = torch.quasirandom.SobolEngine(classes, scramble=True, seed=0)  # type: ignore[no-untyped-call]
    points: Tensor = engine.draw(point_count(classes), dtype=torch.float64)
    return points.numpy()
