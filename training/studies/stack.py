"""Networks of one architecture, trained together.

All networks have the same batches, initial weights and random numbers, so that they differ by their variants only. On
one thread an epoch of a network takes 1.1 s, compared with 1.4 s with `torch.func.vmap` and 1.6 s with a loop over
`nn.Sequential` and `torch.optim.SGD`; in all of them matrix products take 0.8 s.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from model import build_mlp, entropy
from training.data import Images
from training.fit import initial_network
from training.recipes import Recipe
from training.studies.perturbations import Draws, Kind, Streams, mask_weights, perturb

_TRAINING, _TESTING = 0, 1  # purposes of random numbers
_IMAGES_AT_ONCE = 1_000
_AVERAGE_STEP = 0.01  # weight of a new value in the moving average of mean squares


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How one network of a stack differs from the others.

    Attributes:
        name: its name in tables.
        rates: dropout probability after each hidden layer; other noise has the same variance.
        noise: kind of noise; that of "dropconnect" is on the weights of the layer that follows.
        weight_decay: factor of the weights that is added to their gradient; biases have none.
    """

    name: str
    rates: tuple[float, float] = (0.0, 0.0)
    noise: Kind = "dropout"
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Pass:
    """Intermediate results of a pass of K networks over B images; lists have a tensor for each layer.

    Attributes:
        units_KBU: hidden units after their ReLU.
        factors_KBU: factors of the noise.
        noisy_KBU: hidden units with noise.
        masks_KUV: factors of the weights after each hidden layer; None where no network masks weights.
        logits_KBC: output.
    """

    units_KBU: list[Tensor]
    factors_KBU: list[Tensor]
    noisy_KBU: list[Tensor]
    masks_KUV: list[Tensor | None]
    logits_KBC: Tensor


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of K networks for B images; predictive and expected entropies (K, B) in nats."""

    probs_KBC: Tensor
    predictive_KB: Tensor
    expected_KB: Tensor


class DivergenceError(ArithmeticError):
    """A network whose weights are no longer finite."""


class Stack:
    """Networks of one recipe's architecture, one for each variant, trained by its plain SGD.

    Args:
        variants: K variants.
        recipe: architecture, initial weights, batch size, learning rate.
        seed: seed of initial weights, order of the images, and noise.
    """

    def __init__(self, variants: Sequence[Variant], recipe: Recipe, *, seed: int) -> None:
        self.variants = tuple(variants)
        self.recipe = recipe
        self.seed = seed
        for_weights, for_order = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        torch.manual_seed(int(for_weights))
        linears = [layer for layer in initial_network(recipe) if isinstance(layer, nn.Linear)]
        self.weights_KUV = [linear.weight.detach().T.repeat(len(variants), 1, 1) for linear in linears]
        self.biases_K1V = [linear.bias.detach().repeat(len(variants), 1, 1) for linear in linears]
        self._order = torch.Generator().manual_seed(int(for_order))
        self._streams = Streams(seed, _TRAINING)
        self._mean_squares: dict[tuple[int, int], Tensor] = {}  # of units in training, by network and layer
        self._decay_K11 = torch.tensor([variant.weight_decay for variant in variants])[:, None, None]

    def network(self, k: int) -> nn.Sequential:
        """Copy network k as an `nn.Sequential` in eval mode, with dropout layers of its rates."""
        architecture = replace(self.recipe.architecture, dropout=self.variants[k].rates)
        network = build_mlp(architecture)
        linears = [layer for layer in network if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for linear, weight_KUV, bias_K1V in zip(linears, self.weights_KUV, self.biases_K1V, strict=True):
                linear.weight.copy_(weight_KUV[k].T)
                linear.bias.copy_(bias_K1V[k, 0])
        return network.eval()

    def epochs(self, train: Images, count: int) -> Iterator[int]:
        """Train for some epochs; yield 0 before the first, then the number of each finished epoch.

        Raises:
            DivergenceError: a network's weights are no longer finite.
        """
        inputs_BU = train.inputs_B.flatten(1)
        steps_per_epoch = -(-len(train) // self.recipe.batch_size)
        yield 0
        for number in range(1, count + 1):
            order_B = torch.randperm(len(train), generator=self._order)
            for step, index in enumerate(order_B.split(self.recipe.batch_size), (number - 1) * steps_per_epoch):
                schedule_factor = 1 - step / (count * steps_per_epoch) if self.recipe.schedule == "linear" else 1
                self.step(inputs_BU[index], train.labels_B[index], rate=self.recipe.learning_rate * schedule_factor)
            self._check(number)
            yield number

    def _check(self, epoch: int) -> None:
        finite_K = torch.stack([weight_KUV.isfinite().all(dim=2).all(dim=1) for weight_KUV in self.weights_KUV]).all(
            dim=0
        )
        if not finite_K.all():
            names = [
                variant.name for variant, finite in zip(self.variants, finite_K.tolist(), strict=True) if not finite
            ]
            raise DivergenceError(
                f"{', '.join(names)}, seed {self.seed}: the weights aren't finite after epoch {epoch}; "
                f"a learning rate of {self.recipe.learning_rate:g} is too high"
            )

    def step(self, inputs_BU: Tensor, labels_B: Tensor, *, rate: float) -> None:
        """Take one SGD step on the mean cross-entropy of a batch with learning rate `rate`."""
        decay_factor_K11 = 1 - rate * self._decay_K11
        result = self.forward(self.first_layer(inputs_BU), self._streams, rows=len(inputs_BU))
        gradient_KBV = result.logits_KBC.softmax(dim=-1)
        gradient_KBV -= one_hot(labels_B, gradient_KBV.shape[-1])
        gradient_KBV *= rate / len(inputs_BU)
        for layer in range(len(result.units_KBU), 0, -1):
            weight_KUV, mask_KUV = self.weights_KUV[layer], result.masks_KUV[layer - 1]
            step_KUV = torch.bmm(result.noisy_KBU[layer - 1].mT, gradient_KBV)
            previous_KBV = torch.bmm(gradient_KBV, (weight_KUV if mask_KUV is None else weight_KUV * mask_KUV).mT)
            previous_KBV *= result.factors_KBU[layer - 1]
            previous_KBV *= result.units_KBU[layer - 1] > 0
            weight_KUV *= decay_factor_K11
            weight_KUV -= step_KUV if mask_KUV is None else step_KUV * mask_KUV
            self.biases_K1V[layer] -= gradient_KBV.sum(dim=1, keepdim=True)
            gradient_KBV = previous_KBV
        self.weights_KUV[0] *= decay_factor_K11
        self.weights_KUV[0].baddbmm_(inputs_BU.T.expand(len(gradient_KBV), -1, -1), gradient_KBV, alpha=-1)
        self.biases_K1V[0] -= gradient_KBV.sum(dim=1, keepdim=True)

    def first_layer(self, inputs_BU: Tensor) -> Tensor:
        """Run inputs through the first layer and its ReLU, without noise: (K, B, U)."""
        inputs_KBU = inputs_BU.expand(len(self.variants), -1, -1)
        return torch.baddbmm(self.biases_K1V[0], inputs_KBU, self.weights_KUV[0]).relu_()

    def forward(self, units_KBU: Tensor, streams: Streams | None = None, *, rows: int = 1) -> Pass:
        """Run the first layer's units through the remaining layers.

        Args:
            units_KBU: from `first_layer`.
            streams: random numbers of the noise; None for no noise.
            rows: B for separate noise on each image, 1 for noise shared by all images.
        """
        units, factors, noisy, masks = [], [], [], []
        hidden = len(self.weights_KUV) - 1
        for layer in range(hidden):
            if layer:
                units_KBU = units_KBU.relu_()
            factor_KBU, noisy_KBU, mask_KUV = self._perturbed(units_KBU, layer, streams, rows)
            weight_KUV = self.weights_KUV[layer + 1]
            if mask_KUV is not None:
                weight_KUV = weight_KUV * mask_KUV
            units.append(units_KBU)
            factors.append(factor_KBU)
            noisy.append(noisy_KBU)
            masks.append(mask_KUV)
            units_KBU = torch.baddbmm(self.biases_K1V[layer + 1], noisy_KBU, weight_KUV)
        return Pass(units, factors, noisy, masks, units_KBU)

    def _perturbed(
        self, units_KBU: Tensor, layer: int, streams: Streams | None, rows: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw the noise of each network: its factors, the noisy units, and the factors of the next layer's weights."""
        noisy = [k for k, variant in enumerate(self.variants) if streams is not None and variant.rates[layer] > 0]
        if streams is None or not noisy:
            return torch.ones(1), units_KBU, None
        factor_KBU = torch.ones(len(units_KBU), rows, units_KBU.shape[-1])
        noisy_KBU, mask_KUV = units_KBU.clone(), None
        on_units = Draws((rows, units_KBU.shape[-1]), streams, layer)
        on_weights = Draws(tuple(self.weights_KUV[layer + 1].shape[1:]), streams, len(self.weights_KUV) + layer)
        for k in noisy:
            variant = self.variants[k]
            if variant.noise == "dropconnect":
                mask_KUV = torch.ones_like(self.weights_KUV[layer + 1]) if mask_KUV is None else mask_KUV
                mask_KUV[k] = mask_weights(variant.rates[layer], on_weights)
                continue
            mean_square = self._mean_square(units_KBU[k], k, layer, learn=rows > 1)
            factor_KBU[k], shift_BU = perturb(variant.noise, variant.rates[layer], on_units, mean_square)
            noisy_KBU[k] *= factor_KBU[k]
            if shift_BU is not None:
                noisy_KBU[k] += shift_BU
        return factor_KBU, noisy_KBU, mask_KUV

    def _mean_square(self, units_BU: Tensor, k: int, layer: int, *, learn: bool) -> Tensor:
        """Mean square of the units of a batch; if all images share their noise, the training average instead."""
        if not learn:
            return self._mean_squares.get((k, layer), torch.ones(()))
        mean_square = units_BU.square().mean()
        before = self._mean_squares.get((k, layer), mean_square)
        self._mean_squares[k, layer] = before + _AVERAGE_STEP * (mean_square - before)
        return mean_square

    def predict(self, inputs_BU: Tensor, *, passes: int = 0) -> Predictions:
        """Predict without noise, or average passes with noise that all images share.

        Args:
            inputs_BU: images as vectors.
            passes: number of passes; 0 for no noise.
        """
        parts = [self._predict(part_BU, passes) for part_BU in inputs_BU.split(_IMAGES_AT_ONCE)]
        return Predictions(*(torch.cat(kind, dim=1) for kind in zip(*parts, strict=True)))

    def _predict(self, inputs_BU: Tensor, passes: int) -> tuple[Tensor, Tensor, Tensor]:
        units_KBU, streams = self.first_layer(inputs_BU), Streams(self.seed, _TESTING)
        logits = (self.forward(units_KBU, streams if passes else None).logits_KBC for _ in range(max(passes, 1)))
        probs_KBC, expected_KB = 0, 0
        for logits_KBC in logits:
            one_KBC = logits_KBC.double().softmax(dim=-1)
            probs_KBC, expected_KB = probs_KBC + one_KBC, expected_KB + entropy(one_KBC)
        probs_KBC, expected_KB = probs_KBC / max(passes, 1), expected_KB / max(passes, 1)
        return probs_KBC, entropy(probs_KBC), expected_KB
