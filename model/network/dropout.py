"""Dropout by its definition, of units and of weights."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model.masks import MaskRange, check_probability, keep_masks, survivor_scale


def dropout_layer(X: Tensor, p: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Drop each element with probability p and divide the others by 1 - p, so that the expectation is X.

    Inverted dropout (Srivastava et al. 2014, section 10; d2l.ai, "Dropout"): an element is kept where U >= p, with U
    drawn from the uniform distribution on [0, 1).

    Args:
        X: activations of any shape.
        p: probability of dropping an element.
        generator: source of U; torch's global generator by default.

    Returns:
        A tensor of X's shape whose elements are 0 or x / (1 - p).

    Raises:
        ValueError: p lies outside [0, 1].
    """
    check_probability(p)
    if p == 0:
        return X
    if p == 1:
        return torch.zeros_like(X)
    keep = torch.rand(X.shape, generator=generator, device=X.device) >= p
    return torch.where(keep, X / (1 - p), 0)


class DropConnect(nn.Linear):
    """Linear layer that in train mode drops single weights with probability p (Wan et al. 2013, ICML).

    Kept weights are divided by 1 - p. Over the masks, output v of inputs x has the expectation sum_u W_vu x_u + b_v and
    the variance p / (1 - p) sum_u W_vu^2 x_u^2. All examples of a call share one mask (in the paper each has
    its own), so one call evaluates one thinned network. Biases are never dropped.

    Args:
        in_features: number of input units.
        out_features: number of output units.
        p: probability of dropping a weight.
        bias: whether the layer has biases.
        generator: source of the masks; torch's global generator by default.

    Raises:
        ValueError: p lies outside [0, 1].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        p: float = 0.5,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        check_probability(p)
        self.p = p
        self.generator = generator

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Linear calls it
        """Map inputs (..., in_features) to (..., out_features), in train mode with the kept weights."""
        weight = dropout_layer(self.weight, self.p, generator=self.generator) if self.training else self.weight
        return linear(input, weight, self.bias)

    def extra_repr(self) -> str:
        """Return the arguments that `print` shows."""
        return f"{super().extra_repr()}, p={self.p}"


def draw_factors(
    shape: tuple[int, ...], p: float, site: int, mask_range: MaskRange, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw masks as factors, (S, *shape): 0 for a dropped unit, 1 / (1 - p) for a kept one."""
    samples, seed, masks = mask_range
    keep = keep_masks(shape, p, samples=len(samples), first=samples.start, seed=seed, layer=site, masks=masks)
    return torch.from_numpy(keep).to(device, dtype) * survivor_scale(p)
