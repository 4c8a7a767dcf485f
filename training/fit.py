"""Fit a network to images by a recipe, epoch by epoch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model import build_mlp
from model.masks import survivor_scale
from training.batch_norm import add_batch_norm, fold_batch_norm
from training.cnn import CNNConfig, build_cnn
from training.data import Images, as_inputs
from training.recipes import Recipe

_EVALUATION_BATCH = 1_000


@dataclass(frozen=True)
class Epoch:
    """Results of one epoch; losses are mean cross-entropies in nats, accuracies in [0, 1].

    The training figures are means over the epoch's steps, under dropout and augmentation; the others are measured in
    eval mode after it.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    held_out_loss: float
    held_out_accuracy: float


class Fit:
    """A training run that can stop after any epoch and continue from its `state_dict` with identical results.

    All random numbers of an epoch derive from (seed, number of the epoch), so the state contains no generators.

    Args:
        recipe: training recipe.
        train: training images; all are kept on the device.
        held_out: images on which each epoch is measured.
        seed: seed of initial weights, order, augmentation and dropout.
        device: device of the computation.
    """

    def __init__(self, recipe: Recipe, train: Images, held_out: Images, *, seed: int, device: torch.device) -> None:
        self.recipe = recipe
        self.seed = seed
        self.train = train.to(device)
        self.held_out = held_out.to(device)
        self.history: list[Epoch] = []
        _seed_torch(seed, 0)
        self._network = initial_network(recipe).to(device, memory_format=torch.channels_last)  # faster convolutions
        first = next((i for i, layer in enumerate(self._network) if isinstance(layer, nn.Dropout)), 0)
        self._prefix, self._suffix = self._network[:first], self._network[first:]
        self._optimizer = _optimizer(recipe, self._network)
        self._scheduler = _scheduler(recipe, self._optimizer, self._steps_per_epoch)
        self._average = _average(recipe, self._network)
        is_augmented = recipe.flip or recipe.shift or recipe.erase
        self._plain_inputs_B = None if is_augmented else self.train.inputs_B

    @property
    def network(self) -> nn.Sequential:
        """The current result: averaged weights if the recipe specifies averaging; batch norm is folded in."""
        network = self._network if self._average is None else self._average.module
        return fold_batch_norm(network) if self.recipe.batch_norm else network

    @property
    def _steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.batch_size)

    def run_epoch(self) -> Epoch:
        """Train for one epoch, measure, and append the result to the history."""
        number = len(self.history) + 1
        bit_generator = _seed_torch(self.seed, number)
        self._network.train()
        loss_sum = torch.zeros((), device=self.train.images_B.device)
        correct = torch.zeros_like(loss_sum)
        for inputs_B, labels_B in self._batches():
            loss, correct_in_batch = self._step(inputs_B, labels_B, bit_generator)
            loss_sum += loss * len(labels_B)
            correct += correct_in_batch
        held_out_loss, held_out_accuracy = evaluate_loss(self.network, self.held_out)
        images = len(self.train)
        epoch = Epoch(number, loss_sum.item() / images, correct.item() / images, held_out_loss, held_out_accuracy)
        self.history.append(epoch)
        return epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state of the run, for `torch.save`."""
        return {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "device": self.train.images_B.device.type,
            "threads": torch.get_num_threads(),
            "history": [asdict(epoch) for epoch in self.history],
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same recipe, seed, kind of device and number of threads.

        Raises:
            ValueError: the state belongs to another run, so that continuing would not reproduce either run.
        """
        own = self.state_dict()
        for what in ("recipe", "seed", "device", "threads"):
            if state[what] != own[what]:
                raise ValueError(f"{what}: expected {own[what]}, got a checkpoint of {state[what]}")
        self.history = [Epoch(**row) for row in state["history"]]
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.train), device=self.train.images_B.device)
        for index in order.split(self.recipe.batch_size):
            yield self._inputs(index), self.train.labels_B[index]

    def _inputs(self, index: Tensor) -> Tensor:
        if self._plain_inputs_B is not None:
            return self._plain_inputs_B[index]
        recipe = self.recipe
        return as_inputs(augment(self.train.images_B[index], flip=recipe.flip, shift=recipe.shift, erase=recipe.erase))

    def _step(self, inputs_B: Tensor, labels_B: Tensor, bit_generator: np.random.BitGenerator) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return the mean loss and the number of correct predictions (mean over the masks)."""
        masks = self.recipe.masks
        logits = _run_with_dropout(self._suffix, self._prefix(inputs_B).repeat(masks, 1), bit_generator)
        labels = labels_B.repeat(masks)
        loss = cross_entropy(logits, labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self._network)
        return loss.detach(), (logits.detach().argmax(dim=-1) == labels).sum() / masks


def _run_with_dropout(layers: nn.Sequential, features: Tensor, bit_generator: np.random.BitGenerator) -> Tensor:
    for layer in layers:
        if isinstance(layer, nn.Dropout):
            features = features * (_keep_mask(features, layer.p, bit_generator) * survivor_scale(layer.p))
        else:
            features = layer(features)
    return features


def _keep_mask(features: Tensor, p: float, bit_generator: np.random.BitGenerator) -> Tensor:
    """Draw a keep-mask by comparing 32-bit words with p, in a fifth of the time of `nn.Dropout` on a CPU."""
    size = features.numel()
    drawn = bit_generator.random_raw(-(-size // 2)).view(np.uint32)[:size]
    return torch.from_numpy(drawn >= int(p * 2**32)).view(features.shape).to(features.device)


def evaluate_loss(network: nn.Module, images: Images) -> tuple[float, float]:
    """Compute mean cross-entropy in nats and accuracy in [0, 1] of a network in eval mode."""
    was_training = network.training
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(as_inputs(part)) for part in images.images_B.split(_EVALUATION_BATCH)])
    network.train(was_training)
    accuracy = (logits.argmax(dim=-1) == images.labels_B).double().mean()
    return cross_entropy(logits, images.labels_B).item(), accuracy.item()


def augment(images_B: Tensor, *, flip: bool, shift: int, erase: int = 0) -> Tensor:
    """Mirror, shift and partly erase images (B, 28, 28), each with probability one half.

    Args:
        images_B: uint8.
        flip: whether to mirror.
        shift: largest shift in pixels along each axis; uncovered pixels are black.
        erase: side in pixels of a black square, whose centre is anywhere in the image.
    """
    if flip:
        is_flipped = torch.rand(len(images_B), device=images_B.device) < 0.5
        images_B = torch.where(is_flipped[:, None, None], images_B.flip(-1), images_B)
    if shift:
        images_B = _shift(images_B, shift)
    if erase:
        images_B = _erase(images_B, erase)
    return images_B


def _shift(images_B: Tensor, shift: int) -> Tensor:
    count, height, width = images_B.shape
    device = images_B.device
    moved = torch.rand(count, 1, device=device) < 0.5
    offsets = torch.randint(-shift, shift + 1, (count, 2), device=device) * moved + shift
    rows = offsets[:, 0, None] + torch.arange(height, device=device)
    columns = offsets[:, 1, None] + torch.arange(width, device=device)
    padded = pad(images_B, (shift, shift, shift, shift))
    return padded[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _erase(images_B: Tensor, side: int) -> Tensor:
    count, device = len(images_B), images_B.device
    is_erased = torch.rand(count, device=device) < 0.5
    rows, columns = (_near(torch.randint(size, (count,), device=device), size, side) for size in images_B.shape[1:])
    return images_B.masked_fill(is_erased[:, None, None] & rows[:, :, None] & columns[:, None, :], 0)


def _near(centres: Tensor, size: int, side: int) -> Tensor:
    """For each centre, which of the positions 0..size - 1 the `side` positions around it cover."""
    first = (centres - side // 2)[:, None]
    position = torch.arange(size, device=centres.device)
    return (position >= first) & (position < first + side)


def _seed_torch(seed: int, epoch: int) -> np.random.BitGenerator:
    """Seed torch's global generator, for weights, order and augmentation; return the generator of masks."""
    for_torch, for_masks = np.random.SeedSequence((seed, epoch)).spawn(2)
    torch.manual_seed(int(for_torch.generate_state(1, np.uint64)[0]))
    return np.random.SFC64(for_masks)


def initial_network(recipe: Recipe) -> nn.Sequential:
    """Build a recipe's network with initial weights from torch's global generator."""
    if isinstance(recipe.architecture, CNNConfig):
        return build_cnn(recipe.architecture)
    network = build_mlp(recipe.architecture)
    if recipe.initial_std is not None:
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=recipe.initial_std)
    return add_batch_norm(network) if recipe.batch_norm else network


def _optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
    return torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )


def _scheduler(
    recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1, total_iters=0)
    if recipe.schedule == "linear":
        steps = recipe.epochs * steps_per_epoch
        return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=0, total_iters=steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=recipe.epochs * steps_per_epoch
    )


def _average(recipe: Recipe, network: nn.Sequential) -> AveragedModel | None:
    if recipe.average_decay is None:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay), use_buffers=True)
