"""Pictures of results."""

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from training.fit import Epoch

mpl.use("Agg")


def learning_curves(history: Sequence[Epoch], *, title: str, held_out_name: str) -> bytes:
    """Draw loss and accuracies against the epoch, as the chapter does, as a PNG file.

    Args:
        history: the epochs of a run.
        title: what was run.
        held_out_name: what the held-out images are called: "validation" or "test".
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row.epoch for row in history]
    axes.plot(epochs, [row.train_loss for row in history], "-", color="C0", label="train loss (nats)")
    axes.plot(epochs, [row.held_out_loss for row in history], "--", color="C0", label=f"{held_out_name} loss (nats)")
    axes.plot(epochs, [row.train_accuracy for row in history], "-", color="C1", label="train accuracy")
    axes.plot(epochs, [row.held_out_accuracy for row in history], "--", color="C1", label=f"{held_out_name} accuracy")
    axes.set(xlabel="epoch", ylim=(0, 1), title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()
