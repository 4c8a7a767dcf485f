"""Many more epochs, with and without dropout."""

from collections.abc import Iterator

import numpy as np

from training import plots
from training.studies.lab import Measurement, losses
from training.studies.stack import Stack, Variant
from training.studies.study import Check, Estimate, Findings, Results, Study, Task, claim, estimate, markdown

Array = np.ndarray

_NONE, _DROPOUT = "none", "0.2/0.5"
_SMOOTHED = 5  # epochs of the moving average


def _run(task: Task) -> Iterator[Measurement]:
    stack = Stack(task.variants, task.recipe, seed=task.seed)
    for epoch in stack.epochs(task.lab.train, task.recipe.epochs):
        if epoch:
            yield from losses(stack, task.lab, epoch)


def _smooth(curve_SE: Array) -> Array:
    """Moving average over epochs, of as many as there are at most."""
    width = min(_SMOOTHED, curve_SE.shape[1])
    return np.stack([np.convolve(curve_E, np.ones(width) / width, mode="valid") for curve_E in curve_SE])


def _turn(results: Results, name: str) -> tuple[Array, Array]:
    """Epoch of the lowest test loss, and how far it has risen at the end, both of the moving average, by seed."""
    smooth_SE = _smooth(results.over_places(name, "test loss"))
    middle = (results.places(name, "test loss")[-1] - smooth_SE.shape[1]) / 2
    return 1 + middle + smooth_SE.argmin(axis=1), smooth_SE[:, -1] - smooth_SE.min(axis=1)


def _find(results: Results) -> Findings:
    turns = {name: _turn(results, name) for name in results.names}
    last = results.places(_NONE, "test loss")[-1]
    width = min(_SMOOTHED, last)
    gaps = {
        name: estimate(
            (_smooth(results.over_places(name, "test loss") - results.over_places(name, "train loss")))[:, -1]
        )
        for name in results.names
    }
    accuracies = {name: _smooth(results.over_places(name, "test accuracy"))[:, -1] for name in results.names}
    rows = [
        [name, f"{estimate(turn_S):1}", f"{estimate(rise_S)}", f"{gaps[name]}", f"{estimate(accuracies[name])}"]
        for name, (turn_S, rise_S) in turns.items()
    ]
    later: Estimate = estimate(turns[_DROPOUT][0] - turns[_NONE][0])
    rise = estimate(turns[_NONE][1] - turns[_DROPOUT][1])
    return Findings(
        claims=[
            *(
                f"{_title(name)}, test loss is lowest around epoch {estimate(turn_S):1}, and {estimate(rise_S):4} nats above "
                f"that after {last}: {_overfitting(estimate(rise_S))}"
                for name, (turn_S, rise_S) in turns.items()
            ),
            claim(
                later,
                more="With dropout the lowest test loss comes later",
                less="With dropout the lowest test loss comes earlier",
                digits=1,
            ),
            claim(
                rise,
                more="Until the end, test loss rises further without dropout than with it",
                less="Until the end, test loss rises further with dropout than without it",
            ),
            claim(
                estimate(accuracies[_DROPOUT] - accuracies[_NONE]),
                more="At the end, test accuracy is higher with dropout",
                less="At the end, test accuracy is lower with dropout",
            ),
        ],
        tables=[
            markdown(
                ["network", "epoch of the lowest test loss", "rise since", "test - train loss", "test accuracy"], rows
            )
        ],
        pictures={
            "epochs": (
                "Loss without noise on training and test images, mean over seeds and its interval",
                plots.bands(
                    {
                        f"{part} loss (nats)": {name: results.curve(name, f"{part} loss") for name in results.names}
                        for part in ("train", "test")
                    },
                    x="epoch",
                ),
            )
        },
        checks=[
            Check("without dropout, test loss has risen since its lowest", float(turns[_NONE][1].mean()), 0.005),
            Check(
                f"with dropout, test and training loss are closer (means of {width} epochs)",
                gaps[_NONE].mean - gaps[_DROPOUT].mean,
                0.01,
            ),
        ],
    )


def _title(name: str) -> str:
    return "Without dropout" if name == _NONE else f"With dropout {name}"


def _overfitting(rise: Estimate) -> str:
    return "whether it overfits is open." if rise.is_open else "from there on it overfits."


STUDY = Study(
    name="epochs",
    question="What happens in many more epochs, with dropout and without?",
    design="{epochs} epochs with a constant learning rate, as in the chapter. Losses are measured without noise after each, "
    f"on 10,000 training images (or all, if fewer) and on the test images. As the constant rate makes them jump, the "
    f"lowest loss is that of the moving average over {_SMOOTHED} epochs.",
    limits="The epoch at which overfitting starts belongs to this learning rate, batch size and number of images; a minimum "
    "of a jumping curve is early or late by chance, and its rise since is never negative.",
    variants=(Variant(name=_NONE), Variant(name=_DROPOUT, rates=(0.2, 0.5))),
    epochs=(60, 40),
    schedule="constant",
    run=_run,
    find=_find,
)
