"""Dropout and weight decay, each alone and together."""

from collections.abc import Iterator

import numpy as np

from training import plots
from training.studies.lab import Measurement, losses
from training.studies.stack import Stack, Variant
from training.studies.study import Check, Findings, Results, Study, Task, claim, estimate, markdown

_NEITHER, _DROPOUT, _DECAY, _BOTH = "neither", "dropout", "decay", "both"
_TITLES = {_DROPOUT: "Dropout", _DECAY: "Weight decay", _BOTH: "Both together"}
_STRENGTH = 1e-3
_METRICS = {"test accuracy": "test accuracy", "test loss": "test loss", "gap": "gap", "loss gap": "loss gap"}


def _run(task: Task) -> Iterator[Measurement]:
    stack = Stack(task.variants, task.recipe, seed=task.seed)
    for epoch in stack.epochs(task.lab.train, task.recipe.epochs):
        if epoch == task.recipe.epochs:
            found = {(m.configuration, m.metric): m.value for m in losses(stack, task.lab, 0)}
            for (name, metric), value in found.items():
                yield Measurement(name, metric, 0, value)
                if metric == "test accuracy":
                    yield Measurement(name, "gap", 0, found[name, "train accuracy"] - value)
                if metric == "test loss":
                    yield Measurement(name, "loss gap", 0, value - found[name, "train loss"])
            norms_K = sum(weight_KUV.square().sum(dim=(1, 2)) for weight_KUV in stack.weights_KUV)
            for variant, norm in zip(stack.variants, norms_K.sqrt().tolist(), strict=True):
                yield Measurement(variant.name, "norm", 0, norm)


def _find(results: Results) -> Findings:
    def effect(name: str, metric: str, what: str) -> str:
        return claim(
            results.difference(name, _NEITHER, metric),
            more=f"{_TITLES[name]} raise{'s' * (name != _BOTH)} {what}",
            less=f"{_TITLES[name]} lower{'s' * (name != _BOTH)} {what}",
        )

    interactions = {
        metric: estimate(
            results.values(_BOTH, metric)
            - results.values(_DROPOUT, metric)
            - results.values(_DECAY, metric)
            + results.values(_NEITHER, metric)
        )
        for metric in _METRICS.values()
    }
    rows = [
        [
            title,
            *(f"{results.difference(name, _NEITHER, metric)}" for name in (_DROPOUT, _DECAY, _BOTH)),
            f"{interactions[metric]}",
        ]
        for title, metric in _METRICS.items()
    ]
    return Findings(
        claims=[
            *(effect(name, "gap", "the gap between training and test accuracy") for name in (_DROPOUT, _DECAY, _BOTH)),
            *(effect(name, "test loss", "test loss") for name in (_DROPOUT, _DECAY, _BOTH)),
            *(effect(name, "test accuracy", "test accuracy") for name in (_DROPOUT, _DECAY, _BOTH)),
            *(
                claim(
                    interactions[metric],
                    more=f"In {title}, both together are above the sum of their effects",
                    less=f"In {title}, both together are below the sum of their effects",
                )
                for title, metric in _METRICS.items()
            ),
        ],
        tables=[
            results.table({**_METRICS, "norm of the weights": "norm"}),
            markdown(["effect against neither", "dropout", "decay", "both", "interaction"], rows),
        ],
        pictures={
            "weight-decay": (
                "Mean over seeds and its interval",
                plots.intervals(results.intervals({title: metric for title, metric in _METRICS.items()})),
            )
        },
        checks=[
            Check("both together narrow the gap", -results.difference(_BOTH, _NEITHER, "gap").mean, 0.001),
            Check("weight decay makes the weights smaller", -results.difference(_DECAY, _NEITHER, "norm").mean, 0.1),
        ],
    )


STUDY = Study(
    name="weight-decay",
    question="Dropout, weight decay, both, or neither: do their effects add up?",
    design="Two by two: dropout 0.2/0.5 or none, weight decay "
    f"{_STRENGTH:g} or none (of weights, not biases, in the gradient of SGD). {{epochs}} epochs with a learning rate that "
    "falls to 0. Gaps are between 10,000 training images (or all, if fewer) and the test images. Interaction is the effect "
    "of both less the two effects alone: 0 if they add up.",
    limits="One strength of each; another may add up differently. That the interaction is open doesn't say that there is none, "
    "only how large it can be.",
    variants=(
        Variant(name=_NEITHER),
        Variant(name=_DROPOUT, rates=(0.2, 0.5)),
        Variant(name=_DECAY, weight_decay=_STRENGTH),
        Variant(name=_BOTH, rates=(0.2, 0.5), weight_decay=_STRENGTH),
    ),
    epochs=(20, 24),
    schedule="linear",
    run=_run,
    find=_find,
)
