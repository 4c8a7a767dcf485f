"""Training for many more epochs, with and without dropout."""

from collections.abc import Iterator

import numpy as np

from training import plots
from training.studies.claims import Claim, claim, markdown
from training.studies.intervals import estimate
from training.studies.measurements import Measurement, losses
from training.studies.stack import Stack, Variant
from training.studies.study import Check, Findings, Results, Study, Task

Array = np.ndarray

_NONE, _DROPOUT = "none", "0.2/0.5"
_SMOOTHED = 5  # epochs of the moving average


def _run(task: Task) -> Iterator[Measurement]:
    stack = Stack(task.variants, task.recipe, seed=task.seed)
    for epoch in stack.epochs(task.data.train, task.recipe.epochs):
        if epoch:
            yield from losses(stack, task.data, epoch)


def _smooth(curve_SE: Array) -> Array:
    """Moving average over epochs; the window is at most the number of epochs."""
    width = min(_SMOOTHED, curve_SE.shape[1])
    return np.stack([np.convolve(curve_E, np.ones(width) / width, mode="valid") for curve_E in curve_SE])


def _lowest_loss_and_rise(results: Results, name: str) -> tuple[Array, Array]:
    """Epoch of the lowest test loss and its rise until the end, both of the moving average, by seed.

    The rise of a seed is counted from the epoch at which the mean of the other seeds is lowest. Counted from its own
    minimum, every noisy curve rises.
    """
    smooth_SE = _smooth(results.values_by_position(name, "test loss"))
    offset = (results.positions(name, "test loss")[-1] - smooth_SE.shape[1]) / 2
    others = [np.delete(smooth_SE, seed, axis=0).mean(axis=0).argmin() for seed in range(len(smooth_SE))]
    rise_S = [curve_E[-1] - curve_E[lowest] for curve_E, lowest in zip(smooth_SE, others, strict=True)]
    return 1 + offset + smooth_SE.argmin(axis=1), np.array(rise_S)


def _overfitting(name: str, lowest_S: Array, rise_S: Array, last: int) -> Claim:
    title = "without dropout" if name == _NONE else f"with dropout {name}"
    rise = estimate(rise_S)
    position = f"the minimum is near epoch {estimate(lowest_S):1}"
    if rise.is_open:
        return Claim(f"whether test loss rises again until epoch {last} {title} ({rise}; {position})", is_open=True)
    moved = f"rises again, by {rise}" if rise.mean > 0 else f"goes on falling, by {-rise}"
    return Claim(f"{title[0].upper()}{title[1:]}, test loss {moved} until epoch {last}; {position}.")


def _interpret(results: Results) -> Findings:
    by_network = {name: _lowest_loss_and_rise(results, name) for name in results.names}
    last = results.positions(_NONE, "test loss")[-1]
    gaps_SE = {
        name: _smooth(results.values_by_position(name, "test loss") - results.values_by_position(name, "train loss"))
        for name in results.names
    }
    gaps = {name: estimate(gap_SE[:, -1]) for name, gap_SE in gaps_SE.items()}
    accuracies = {name: _smooth(results.values_by_position(name, "test accuracy"))[:, -1] for name in results.names}
    rows = [
        [name, f"{estimate(lowest_S):1}", f"{estimate(rise_S)}", f"{gaps[name]}", f"{estimate(accuracies[name])}"]
        for name, (lowest_S, rise_S) in by_network.items()
    ]

    def compare(values: dict[str, Array], what: str, digits: int = 4) -> Claim:
        found = estimate(values[_DROPOUT] - values[_NONE])
        return claim(found, what, "with dropout", "without", digits=digits)

    return Findings(
        claims=[
            *(_overfitting(name, lowest_S, rise_S, last) for name, (lowest_S, rise_S) in by_network.items()),
            compare(
                {name: lowest_S for name, (lowest_S, _) in by_network.items()}, "the epoch of the lowest test loss", 1
            ),
            compare({name: rise_S for name, (_, rise_S) in by_network.items()}, "the rise of test loss until the end"),
            compare(
                {name: gap_SE[:, -1] for name, gap_SE in gaps_SE.items()}, "the gap between test and training loss"
            ),
            compare(accuracies, "test accuracy at the end"),
        ],
        tables=[
            markdown(
                [
                    "network",
                    "epoch of the lowest test loss",
                    "rise until the end",
                    "test - train loss",
                    "test accuracy",
                ],
                rows,
            )
        ],
        pictures={
            "epochs": (
                "Loss without noise on training and test images, mean over seeds and its interval",
                plots.curves_with_intervals(
                    {
                        f"{part} loss (nats)": {name: results.curve(name, f"{part} loss") for name in results.names}
                        for part in ("train", "test")
                    },
                    x="epoch",
                ),
            )
        },
        checks=[
            Check("without dropout, test loss has risen since its lowest", float(by_network[_NONE][1].mean()), 0.005),
            Check(
                "with dropout, test and training loss are closer",
                gaps[_NONE].mean - gaps[_DROPOUT].mean,
                0.01,
            ),
        ],
    )


STUDY = Study(
    name="epochs",
    question="What happens in many more epochs, with and without dropout?",
    design=f"{{epochs}} epochs with a constant learning rate of 0.2 (with 0.5, two of five networks without dropout "
    "diverged within 60 epochs: seeds 0 and 2). Losses are measured without noise after each, on 10,000 "
    "training images (or all, if fewer) and on the test images. As the constant rate makes them fluctuate, the "
    f"lowest loss is that of the moving average over {_SMOOTHED} epochs, and the rise of a seed is counted "
    "from where the other seeds' mean is lowest.",
    limits="The epoch at which overfitting starts belongs to this learning rate, batch size and number of images; "
    "the minimum of a fluctuating curve is partly random.",
    variants=(Variant(name=_NONE), Variant(name=_DROPOUT, rates=(0.2, 0.5))),
    epochs=(80, 40),
    schedule="constant",
    learning_rate=0.2,
    run=_run,
    interpret=_interpret,
)
