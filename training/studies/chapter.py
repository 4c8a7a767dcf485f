"""The chapter's demonstrations: dropout on a small array, and training from scratch or with PyTorch's layers."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from model import dropout_layer
from training import plots
from training.fit import initial_network
from training.studies.claims import Claim, claim
from training.studies.intervals import estimate
from training.studies.measurements import Measurement, StudyData, accuracy, loss, losses
from training.studies.stack import Stack, Variant
from training.studies.study import Check, Findings, Results, Study, Task

_SCRATCH, _CONCISE, _STACK = "scratch", "concise", "stack"
_DROPPED = (0.0, 0.5, 1.0)
_PARTS = ("train", "test")
_METRICS = {f"{part} {what}": f"{part} {what}" for part in _PARTS for what in ("loss", "accuracy")}


class Scratch:
    """The MLP of the recipe, written with tensors, `dropout_layer` and explicit SGD only.

    Args:
        network: provides the initial weights.
        rates: dropout probabilities of the hidden layers.
        rate: learning rate.
    """

    def __init__(self, network: nn.Sequential, rates: tuple[float, ...], rate: float) -> None:
        linears = [layer for layer in network if isinstance(layer, nn.Linear)]
        self._parameters = [
            (linear.weight.detach().clone().requires_grad_(), linear.bias.detach().clone().requires_grad_())
            for linear in linears
        ]
        self._rates = rates
        self._rate = rate

    def __call__(self, units_BU: Tensor, *, training: bool) -> Tensor:
        """Compute logits (B, C) of inputs (B, U)."""
        (last_weight, last_bias), hidden = self._parameters[-1], self._parameters[:-1]
        for (weight, bias), p in zip(hidden, self._rates, strict=True):
            units_BU = torch.clamp(units_BU @ weight.T + bias, min=0)
            if training:
                units_BU = dropout_layer(units_BU, p)
        return units_BU @ last_weight.T + last_bias

    def step(self, units_BU: Tensor, labels_B: Tensor) -> None:
        """Take one SGD step."""
        cross_entropy(self(units_BU, training=True), labels_B).backward()
        with torch.no_grad():
            for parameter in chain(*self._parameters):
                parameter.sub_(self._rate * parameter.grad)
                parameter.grad = None


class Concise:
    """The same MLP with PyTorch's layers and optimizer."""

    def __init__(self, network: nn.Sequential, rate: float) -> None:
        self._network = network
        self._optimizer = torch.optim.SGD(network.parameters(), lr=rate)

    def __call__(self, units_BU: Tensor, *, training: bool) -> Tensor:
        """Compute logits (B, C) of inputs (B, U)."""
        logits_BC: Tensor = self._network.train(training)(units_BU)
        return logits_BC

    def step(self, units_BU: Tensor, labels_B: Tensor) -> None:
        """Take one SGD step."""
        self._optimizer.zero_grad()
        cross_entropy(self(units_BU, training=True), labels_B).backward()
        self._optimizer.step()


def _run(task: Task) -> Iterator[Measurement]:
    for variant in task.variants:
        yield from _RUNNERS[variant.name](task, variant)


def _train_stack(task: Task, variant: Variant) -> Iterator[Measurement]:
    stack = Stack([variant], task.recipe, seed=task.seed)
    for epoch in stack.epochs(task.data.train, task.recipe.epochs):
        if epoch:
            yield from losses(stack, task.data, epoch)


def _train(task: Task, variant: Variant) -> Iterator[Measurement]:
    # The three also differ in their seeds, so that only the distributions of their curves can agree.
    torch.manual_seed(int(np.random.SeedSequence([task.seed, variant.name == _SCRATCH]).generate_state(1)[0]))
    network, rate = initial_network(task.recipe), task.recipe.learning_rate
    model = Scratch(network, variant.rates, rate) if variant.name == _SCRATCH else Concise(network, rate)
    inputs_BU = task.data.train.inputs_B.flatten(1)
    for epoch in range(1, task.recipe.epochs + 1):
        for index in torch.randperm(len(inputs_BU)).split(task.recipe.batch_size):
            model.step(inputs_BU[index], task.data.train.labels_B[index])
        yield from _measure(variant.name, model, task.data, epoch)


@torch.no_grad()
def _measure(name: str, model: Scratch | Concise, data: StudyData, epoch: int) -> Iterator[Measurement]:
    for part, inputs_BU, images in (("train", data.train_inputs, data.train), ("test", data.test_inputs, data.test)):
        probs_BC = model(inputs_BU, training=False).double().softmax(dim=-1)
        labels_B = images.labels_B[: len(probs_BC)]
        yield Measurement(name, f"{part} loss", epoch, loss(probs_BC, labels_B))
        yield Measurement(name, f"{part} accuracy", epoch, accuracy(probs_BC, labels_B))


_RUNNERS = {_SCRATCH: _train, _CONCISE: _train, _STACK: _train_stack}


def demonstrate(p: float, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Apply dropout to the numbers 0 .. 15 in two rows, as the chapter does; return input and output."""
    X = torch.arange(16, dtype=torch.float32).reshape(2, 8)
    return X, dropout_layer(X, p, generator=torch.Generator().manual_seed(seed))


def _demonstration_text() -> str:
    rows = []
    for p in _DROPPED:
        _, out = demonstrate(p)
        rows.append(f"p = {p:g}:\n" + "\n".join(" ".join(f"{value:4.0f}" for value in row) for row in out.tolist()))
    return "```text\n" + "\n".join(rows) + "\n```"


def _interpret(results: Results) -> Findings:
    last = results.positions(_SCRATCH, "test loss")[-1]
    mean_losses = {name: results.values_by_position(name, "test loss").mean(axis=1) for name in results.names}
    mean_curves = {name: results.values_by_position(name, "test loss").mean(axis=0) for name in results.names}
    variance_NE = [results.values_by_position(name, "test loss").var(axis=0, ddof=1) for name in results.names]
    spread = float(np.sqrt(np.mean(variance_NE, axis=0)).mean())
    distance = {name: float(np.abs(mean_curves[name] - mean_curves[_CONCISE]).mean()) for name in (_SCRATCH, _STACK)}
    X, nothing = demonstrate(0.0)
    _, half = demonstrate(0.5)
    _, everything = demonstrate(1.0)
    return Findings(
        claims=[
            Claim(
                "Dropout with p = 0 keeps the array, with p = 1 sets it to 0, and with p = 0.5 keeps about half of "
                f"the numbers, doubled: here {int((half == 0).sum())} of 16 numbers are 0."
            ),
            *(
                claim(
                    estimate(mean_losses[name] - mean_losses[_CONCISE]),
                    "test loss, averaged over all epochs,",
                    f"with {name}",
                    f"with {_CONCISE}",
                )
                for name in (_SCRATCH, _STACK)
            ),
            Claim(
                f"In a single epoch, the mean test loss of {_SCRATCH} differs by {distance[_SCRATCH]:.4f} nats from "
                f"that of {_CONCISE}, and that of {_STACK} {distance[_STACK]:.4f} (averages over epochs, of means over "
                f"{results.plan.seeds} seeds); single seeds differ by a standard deviation of {spread:.4f}."
            ),
        ],
        tables=[_demonstration_text(), results.table(_METRICS, first=f"after {last} epochs", at=last)],
        pictures={
            "chapter": (
                "Training from scratch, with PyTorch's layers, and as in other studies; mean over seeds and interval",
                plots.curves_with_intervals(
                    {
                        title: {name: results.curve(name, metric) for name in results.names}
                        for title, metric in (
                            ("train loss (nats)", "train loss"),
                            ("test loss (nats)", "test loss"),
                            ("test accuracy", "test accuracy"),
                        )
                    },
                    x="epoch",
                ),
            )
        },
        checks=[
            Check("p = 0 changes nothing", float(torch.equal(nothing, X)), 0),
            Check("p = 0.5 leaves 0 or twice the number", float(((half == 0) | (half == 2 * X)).all()), 0),
            Check("p = 1 leaves nothing", float(not everything.any()), 0),
            *(
                Check(
                    f"curves of {name} and concise are closer than two standard deviations over seeds, or 0.02 nats",
                    max(2 * spread, 0.02) - distance[name],
                    0,
                )
                for name in (_SCRATCH, _STACK)
            ),
        ],
    )


STUDY = Study(
    name="chapter",
    question="Does dropout behave as the chapter shows, and does training from scratch agree with PyTorch's layers?",
    design="`dropout_layer` on the numbers 0 to 15 with three probabilities; and {epochs} epochs with a constant "
    "learning rate and dropout 0.2/0.5, in three ways: from scratch (tensors, `dropout_layer`, SGD by hand), "
    "concise (`nn.Dropout`, `torch.optim.SGD`), and with the stack that trains all other studies. Their seeds "
    "differ.",
    limits="Curves that agree within the variation of seeds may still differ by less. The tests show that single "
    "steps agree.",
    variants=tuple(Variant(name=name, rates=(0.2, 0.5)) for name in (_SCRATCH, _CONCISE, _STACK)),
    epochs=(10, 24),
    schedule="constant",
    run=_run,
    interpret=_interpret,
)
