"""Monte Carlo dropout of any torch module as it is now: while it runs, its dropout is replaced by masks."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.kinds import ArrayOrTensor
from model.masks import MaskRange, Masks, mask_chunks, member_samples
from model.network.dropout import draw_factors
from model.network.dropout_mode import NO_DROPOUT, ONE_LOGIT, DropoutMode, refuse_unmaskable, softmax
from model.network.layers import as_images
from model.network.twins import attention_modules, eval_twin, without_fused_attention

Shape = tuple[int, ...]
Mask = Callable[[float, Shape], Tensor]  # from probability and shape to the mask of the next use of dropout


class LiveNetwork:
    """A module, run image by image in eval mode, with and without masks.

    Args:
        module: from images (B, ...) to logits (B, K); parameters that change later are used as they then are.
        first_site: number of its first use of dropout in the keys of the masks; 0 but for a member of an ensemble.

    Raises:
        TypeError: the module contains dropout that masks can't replace.
    """

    def __init__(self, module: nn.Module, first_site: int = 0) -> None:
        refuse_unmaskable(module)
        self._module, self._first_site = module, first_site
        self._eval = eval_twin(module)
        self._masked: nn.Module | None = None
        self._can_map = True

    def predict(self, image_1: Tensor) -> Tensor:
        """Logits (1, K) without dropout."""
        logits_1C: Tensor = self._eval(image_1.clone())  # which the module may change
        return logits_1C

    def sample(self, image_1: Tensor, mask_range: MaskRange) -> Tensor:
        """Logits (S, K) under masks.

        Raises:
            DropoutError: dropout is used that masks can't replace.
            ValueError: no dropout is reached.
        """
        sites = self.sites(image_1)
        if not sites:
            raise ValueError(NO_DROPOUT)
        masks = [
            draw_factors(shape, p, index, mask_range, image_1.dtype, image_1.device)
            for index, (p, shape) in enumerate(sites, start=self._first_site)
        ]
        if self._can_map:
            try:
                return torch.vmap(lambda *one: self._run(image_1, one)[0])(*masks)
            except RuntimeError:  # an operator without a rule for vmap, for example one that changes its input
                self._can_map = False
        return torch.cat([self._run(image_1, one) for one in zip(*masks, strict=True)])

    def sites(self, image_1: Tensor) -> list[tuple[float, Shape]]:
        """Probability and shape of each use of dropout, in the order of execution."""
        found: list[tuple[float, Shape]] = []

        def note(p: float, shape: Shape) -> Tensor:
            found.append((p, shape))
            return torch.ones((), dtype=image_1.dtype, device=image_1.device)

        with torch.no_grad():
            self._run_with(image_1, note)
        return found

    def _run(self, image_1: Tensor, masks: Sequence[Tensor]) -> Tensor:
        remaining = iter(masks)
        return self._run_with(image_1, lambda _p, _shape: next(remaining))

    def _run_with(self, image_1: Tensor, mask: Mask) -> Tensor:
        if self._masked is None:
            self._masked = eval_twin(self._module, attention_modules(self._module, image_1))

        def drop(features: Tensor, p: float, is_channels: bool) -> Tensor:  # noqa: FBT001 - as DropoutMode calls it
            shape = tuple(features.shape)
            return features * mask(p, (*shape[:2], *(1 for _ in shape[2:])) if is_channels else shape)

        with without_fused_attention(), DropoutMode(drop):
            logits_1C: Tensor = self._masked(image_1.clone())
        return logits_1C


class LiveDropout:
    """Predictions of any module with and without masks; see `model.network.monte_carlo.MonteCarloDropout`.

    Args:
        network: from images (B, ...) to logits (B, C).
        first_site: as in `LiveNetwork`.

    Raises:
        TypeError: the network contains dropout that masks can't replace.
    """

    def __init__(self, network: nn.Module, first_site: int = 0) -> None:
        self._network, self._first_site = network, first_site
        refuse_unmaskable(network)

    def predict(self, images_B: ArrayOrTensor) -> Tensor:
        """Predict without dropout: `probs_BC`."""
        images_B, live = self._prepare(images_B), LiveNetwork(self._network)
        with torch.no_grad():
            logits = [live.predict(image) for image in torch.split(images_B, 1)] or [live.predict(images_B)]
        return softmax(_checked(torch.cat(logits)))

    def sample(
        self, images_B: ArrayOrTensor, *, samples: int, seed: int, masks: Masks, gradients: bool = False
    ) -> Tensor:
        """Predict under masks: `probs_SBC`; with gradients towards the parameters if they are wanted."""
        images_B, live = self._prepare(images_B), LiveNetwork(self._network, self._first_site)
        if len(images_B) == 0:
            return self.predict(images_B).expand(samples, -1, -1)
        units = sum(math.prod(shape) for _, shape in live.sites(images_B[:1]))
        with torch.set_grad_enabled(gradients):
            logits = [
                torch.stack([live.sample(image, (chunk, seed, masks)) for image in torch.split(images_B, 1)], 1)
                for chunk in mask_chunks(samples, units)
            ]
            return softmax(_checked(torch.cat(logits)))

    def at(self, first_site: int) -> "LiveDropout":
        """The same network with another number of its first use of dropout."""
        return LiveDropout(self._network, first_site)

    def sites(self, images_B: ArrayOrTensor) -> list[tuple[float, Shape]]:
        """Probability and shape of each use of dropout for one image."""
        return LiveNetwork(self._network).sites(self._prepare(images_B)[:1])

    def _prepare(self, images_B: ArrayOrTensor) -> Tensor:
        """Copy images to the network's dtype and device: its layers may change them."""
        images_B = as_images(images_B, next(self._network.parameters(), None))
        return images_B.clone()


class LiveEnsemble:
    """Predictions of several networks, of which sample s is one of network s mod M; see `model.graph.Graph`.

    Args:
        networks: M of them, with the same uses of dropout.

    Raises:
        TypeError: a network contains dropout that masks can't replace.
        ValueError: there are no networks.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        if not networks:
            raise ValueError("an ensemble needs networks, got none")
        self._networks = [LiveDropout(network) for network in networks]

    def predict(self, images_B: ArrayOrTensor) -> Tensor:
        """Predict without dropout: the mean `probs_BC` over the networks."""
        return torch.stack([network.predict(images_B) for network in self._networks]).mean(dim=0)

    def sample(
        self, images_B: ArrayOrTensor, *, samples: int, seed: int, masks: Masks, gradients: bool = False
    ) -> Tensor:
        """Predict under masks: `probs_SBC`; as `LiveDropout.sample`.

        Raises:
            ValueError: the networks differ in their uses of dropout.
        """
        if len(images_B) == 0:
            return self.predict(images_B).expand(samples, -1, -1)
        members, sites = len(self._networks), self._networks[0].sites(images_B)
        if any(network.sites(images_B) != sites for network in self._networks):
            raise ValueError("an ensemble needs networks of one architecture, with the same dropout")
        parts: list[Tensor] = []
        order: list[int] = []  # samples, in the order of the parts
        for member, network in enumerate(self._networks):
            if own := member_samples(range(samples), member, members):
                one = network.at(member * len(sites))
                parts.append(one.sample(images_B, samples=len(own), seed=seed, masks=masks, gradients=gradients))
                order += range(member, samples, members)
        return torch.cat(parts)[torch.tensor(order).argsort()]


def _checked(logits: Tensor) -> Tensor:
    """Refuse outputs that are not logits of classes."""
    if logits.shape[-1] == 1:
        raise ValueError(ONE_LOGIT)
    return logits
