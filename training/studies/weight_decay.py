"""Dropout and weight decay, alone and together."""

from collections.abc import Iterator

from training import plots
from training.studies.claims import Claim, claim, markdown
from training.studies.intervals import Estimate, estimate
from training.studies.measurements import Measurement, losses
from training.studies.stack import Stack, Variant
from training.studies.study import Check, Findings, Results, Study, Task

_NEITHER, _DROPOUT, _DECAY, _BOTH = "neither", "dropout", "decay", "both"
_TITLES = {_DROPOUT: "with dropout", _DECAY: "with weight decay", _BOTH: "with both"}
_STRENGTH = 1e-3
_METRICS = {
    "test accuracy": "test accuracy",
    "test loss": "test loss",
    "train - test accuracy": "gap",
    "test - train loss": "loss gap",
}


def _run(task: Task) -> Iterator[Measurement]:
    stack = Stack(task.variants, task.recipe, seed=task.seed)
    for epoch in stack.epochs(task.data.train, task.recipe.epochs):
        if epoch == task.recipe.epochs:
            found = {(m.configuration, m.metric): m.value for m in losses(stack, task.data, 0)}
            for (name, metric), value in found.items():
                yield Measurement(name, metric, 0, value)
                if metric == "test accuracy":
                    yield Measurement(name, "gap", 0, found[name, "train accuracy"] - value)
                if metric == "test loss":
                    yield Measurement(name, "loss gap", 0, value - found[name, "train loss"])
            norms_K = sum(weight_KUV.square().sum(dim=(1, 2)) for weight_KUV in stack.weights_KUV)
            for variant, norm in zip(stack.variants, norms_K.sqrt().tolist(), strict=True):
                yield Measurement(variant.name, "norm", 0, norm)


def _interaction_claim(what: str, interaction: Estimate) -> Claim:
    if interaction.is_open:
        return Claim(f"whether the effects on {what} add up (interaction {interaction})", is_open=True)
    side = "above" if interaction.mean > 0 else "below"
    return Claim(f"The effects on {what} don't add up: that of both is {side} their sum (interaction {interaction}).")


def _interpret(results: Results) -> Findings:
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
            *(
                claim(results.difference(name, _NEITHER, metric), what, title, "with neither")
                for metric, what in (
                    ("gap", "the gap between training and test accuracy"),
                    ("test loss", "test loss"),
                    ("test accuracy", "test accuracy"),
                )
                for name, title in _TITLES.items()
            ),
            *(_interaction_claim(title, interactions[metric]) for title, metric in _METRICS.items()),
        ],
        tables=[
            results.table({**_METRICS, "norm of the weights": "norm"}),
            markdown(["effect against neither", "dropout", "decay", "both", "interaction"], rows),
        ],
        pictures={
            "weight-decay": (
                "Mean over seeds and its interval",
                plots.intervals(results.intervals(_METRICS)),
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
    design=f"Two by two: dropout 0.2/0.5 or none, weight decay {_STRENGTH:g} or none (of weights, not biases, in the "
    f"gradient of SGD). {{epochs}} epochs with a learning rate that falls to 0. Gaps are between 10,000 "
    "training images (or all, if fewer) and the test images. Interaction is the effect of both minus the two "
    "effects alone: 0 if they add up.",
    limits="One strength of each; another may add up differently. That the interaction is open doesn't say that "
    "there is none, only how large it can be.",
    variants=(
        Variant(name=_NEITHER),
        Variant(name=_DROPOUT, rates=(0.2, 0.5)),
        Variant(name=_DECAY, weight_decay=_STRENGTH),
        Variant(name=_BOTH, rates=(0.2, 0.5), weight_decay=_STRENGTH),
    ),
    epochs=(20, 24),
    schedule="linear",
    run=_run,
    interpret=_interpret,
)
