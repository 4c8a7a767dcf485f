"""Variance of the hidden units' activations over time, and the effect of dividing by 1 - p on their moments."""

from collections.abc import Iterator

import numpy as np
import torch

from training import plots
from training.studies.claims import Claim, claim, markdown
from training.studies.intervals import estimate
from training.studies.measurements import Measurement, StudyData
from training.studies.perturbations import Streams
from training.studies.stack import Stack, Variant
from training.studies.study import Check, Findings, Results, Study, Task

_NONE, _DROPOUT = "none", "0.2/0.5"
_LAYERS = (1, 2)
_IMAGES = 5_000
_PURPOSE = 2  # of random numbers; different from training and testing


def _run(task: Task) -> Iterator[Measurement]:
    stack = Stack(task.variants, task.recipe, seed=task.seed)
    for epoch in stack.epochs(task.data.train, task.recipe.epochs):
        yield from _moments(stack, task.data, epoch)


def _moments(stack: Stack, data: StudyData, epoch: int) -> Iterator[Measurement]:
    """Measure moments over images and units, in double precision."""
    inputs_BU = data.train_inputs[:_IMAGES]
    first_KBU = stack.first_layer(inputs_BU)
    plain = stack.forward(first_KBU)
    noisy = stack.forward(first_KBU, Streams(stack.seed, _PURPOSE, epoch), rows=len(inputs_BU))
    for layer in _LAYERS:
        for k, variant in enumerate(stack.variants):
            p = variant.rates[layer - 1]
            before, after = (units[layer - 1][k].double() for units in (noisy.units_KBU, noisy.noisy_KBU))
            unscaled = after * (1 - p)
            found = {
                "variance without noise": plain.units_KBU[layer - 1][k].double().var(),
                "variance": after.var(),
                "mean ratio": after.mean() / before.mean(),
                "mean ratio unscaled": unscaled.mean() / before.mean(),
                "variance ratio": after.var() / before.var(),
                "variance ratio unscaled": unscaled.var() / before.var(),
                "predicted ratio": (before.square().mean() / (1 - p) - before.mean().square()) / before.var(),
            }
            for metric, value in found.items():
                yield Measurement(variant.name, f"{metric}, layer {layer}", epoch, float(torch.as_tensor(value)))


def _interpret(results: Results) -> Findings:
    last = results.positions(_NONE, "variance, layer 1")[-1]
    claims: list[Claim] = []
    checks: list[Check] = []
    for layer in _LAYERS:
        for metric, state in (
            ("variance", "as they are passed on in training"),
            ("variance without noise", "noise off"),
        ):
            claims.append(
                claim(
                    results.difference(_DROPOUT, _NONE, f"{metric}, layer {layer}", last),
                    f"the variance of the activations of layer {layer} after {last} epochs ({state})",
                    "with dropout",
                    "without",
                    digits=3,
                )
            )
        scaled, unscaled, spread, predicted = (
            estimate(results.values_by_position(_DROPOUT, f"{metric}, layer {layer}").mean(axis=1))
            for metric in ("mean ratio", "mean ratio unscaled", "variance ratio", "predicted ratio")
        )
        p = results.study.variants[1].rates[layer - 1]
        claims.append(
            Claim(
                f"Divided by 1 - p, the mean behind dropout {p:g} in layer {layer} is {scaled} of that before; not "
                f"divided, it would be {unscaled}. The variance is {spread:3} times that before; E[x²]/(1 - p) - "
                f"E[x]² says {predicted:3}."
            )
        )
        error = np.abs(
            results.values_by_position(_DROPOUT, f"variance ratio, layer {layer}")
            / results.values_by_position(_DROPOUT, f"predicted ratio, layer {layer}")
            - 1
        ).max()
        checks += [
            Check(f"dropout keeps the mean of layer {layer} to 2 %", 0.02 - abs(scaled.mean - 1), 0),
            Check(f"the variance of layer {layer} is the formula's to 3 %, in every epoch", 0.03 - float(error), 0),
        ]
    rows = [
        [
            f"{layer}, {name}",
            *(
                f"{results.estimate(name, f'{metric}, layer {layer}', last):3}"
                for metric in ("variance without noise", "variance", "mean ratio", "variance ratio", "predicted ratio")
            ),
        ]
        for layer in _LAYERS
        for name in results.names
    ]
    return Findings(
        claims=claims,
        tables=[
            markdown(
                [
                    "layer, network",
                    "variance, noise off",
                    "variance, noise on",
                    "mean behind / before",
                    "variance behind / before",
                    "predicted",
                ],
                rows,
            )
        ],
        pictures={
            "activations": (
                "Variance of the activations over images and units, as training goes on",
                plots.curves_with_intervals(
                    {
                        f"layer {layer}, noise {state}": {
                            name: results.curve(name, f"{metric}, layer {layer}") for name in results.names
                        }
                        for layer in _LAYERS
                        for state, metric in (("off", "variance without noise"), ("on", "variance"))
                    },
                    x="epoch",
                ),
            )
        },
        checks=checks,
    )


STUDY = Study(
    name="activations",
    question="How large is the variance of each hidden layer's activations over time, with and without dropout, "
    "and how does dividing by 1 - p change mean and variance?",
    design=f"{{epochs}} epochs with a constant learning rate. Before the first and after each, the hidden units' "
    f"activations on {_IMAGES:,} training images (or all, if fewer), behind the ReLU: with the noise off, and "
    "as they are passed on in training. Variances are over images and units; ratios compare units behind "
    "dropout with the same units before it.",
    limits="Variance over images and units together mixes how units differ with how images do. That the mean is kept "
    "is by construction; what the next ReLU makes of the added variance isn't.",
    variants=(Variant(name=_NONE), Variant(name=_DROPOUT, rates=(0.2, 0.5))),
    epochs=(10, 24),
    schedule="constant",
    run=_run,
    interpret=_interpret,
)
