"""Plots of results, as PNG files."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.fit import Epoch
from training.metrics import bins_of_equal_width, errors_by_confidence

Array = np.ndarray

_MIN_BIN_IMAGES = 20
_MIN_SHOWN_PROBABILITY = 0.1

mpl.use("Agg")


def learning_curves(history: Sequence[Epoch], *, title: str, held_out_name: str) -> bytes:
    """Plot loss and accuracies against the epoch, as the chapter does.

    Args:
        history: the epochs of a run.
        title: title of the plot.
        held_out_name: name of the held-out images: "validation" or "test".
    """
    figure, axes = _figure()
    epochs = [row.epoch for row in history]
    axes.plot(epochs, [row.train_loss for row in history], "-", color="C0", label="train loss (nats)")
    axes.plot(epochs, [row.held_out_loss for row in history], "--", color="C0", label=f"{held_out_name} loss (nats)")
    axes.plot(epochs, [row.train_accuracy for row in history], "-", color="C1", label="train accuracy")
    axes.plot(epochs, [row.held_out_accuracy for row in history], "--", color="C1", label=f"{held_out_name} accuracy")
    axes.set(xlabel="epoch", ylim=(0, 1), title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def reliability(curves: Mapping[str, tuple[Array, Array]], *, bins: int = 15) -> bytes:
    """Plot accuracy against confidence (reliability diagram).

    Args:
        curves: confidence (B,) and correctness (B,) by name.
        bins: number of bins of equal width.
    """
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect calibration")
    for name, (confidence_B, right_B) in curves.items():
        bin_B = bins_of_equal_width(confidence_B, bins)
        used = np.flatnonzero(np.bincount(bin_B, minlength=bins) >= _MIN_BIN_IMAGES)
        means = [[values_B[bin_B == k].mean() for k in used] for values_B in (confidence_B, right_B)]
        axes.plot(*means, marker="o", label=name)
    axes.set(xlabel="confidence", ylabel="part that is right", title=f"bins of at least {_MIN_BIN_IMAGES} images")
    return _legend(figure, axes)


def risk_coverage(curves: Mapping[str, tuple[Array, Array]]) -> bytes:
    """Plot the error among the most confident predictions against their fraction; arguments as in `reliability`."""
    figure, axes = _figure()
    for name, (confidence_B, right_B) in curves.items():
        errors_N = errors_by_confidence(confidence_B, right_B)
        count_N = np.arange(1, len(errors_N) + 1)
        axes.plot(count_N / len(count_N), errors_N / count_N, label=name)
    axes.set(xlabel="part that is answered", ylabel="wrong among the answered", ylim=(0, None))
    return _legend(figure, axes)


def histograms(values: Mapping[str, Array], *, label: str) -> bytes:
    """Plot histograms of a score (B,) by name of the images; the last bin contains all higher scores.

    The axis ends at the largest 99th percentile, but at most at three times that of the first images.
    """
    figure, axes = _figure()
    percentiles = [np.quantile(value_B, 0.99) for value_B in values.values()]
    highest = min(max(percentiles), 3 * percentiles[0])
    edges = np.linspace(min(value_B.min() for value_B in values.values()), highest, 60)
    for name, value_B in values.items():
        parts = np.full(len(value_B), 1 / len(value_B))
        axes.hist(value_B.clip(max=highest), edges, weights=parts, histtype="step", label=name)
    axes.set(xlabel=label, ylabel="part of the images", yscale="log")
    return _legend(figure, axes)


def bars(heights: Mapping[str, float], *, label: str) -> bytes:
    """Plot a bar for each name."""
    figure, axes = _figure()
    axes.barh(list(heights), list(heights.values()))
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return _png(figure)


def gallery(images_BHW: Array, titles: Sequence[str], *, columns: int = 8) -> bytes:
    """Plot images (B, H, W) in a grid, each below its title."""
    rows = -(-len(images_BHW) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.9 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, pixels_HW, title in zip(figure.axes, images_BHW, titles, strict=False):
        axes.imshow(pixels_HW, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=8)
    return _png(figure)


def lines(curves: Mapping[str, Mapping[float, float]], *, x: str, y: str, log: bool = False) -> bytes:
    """Plot curves; a constant curve is dashed.

    Args:
        curves: values by x, by name.
        x: label of the x axis.
        y: label of the y axis.
        log: whether the x axis is logarithmic.
    """
    figure, axes = _figure()
    for name, points in curves.items():
        constant = len(points) > 1 and len(set(points.values())) == 1
        axes.plot(list(points), list(points.values()), "--" if constant else "o-", markersize=4, label=name)
    axes.set(xlabel=x, ylabel=y)
    if log:
        places = sorted({place for points in curves.values() for place in points})
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)
        axes.set_xticks([], minor=True)
    return _legend(figure, axes)


def curves_with_intervals(
    panels: Mapping[str, Mapping[str, Mapping[float, tuple[float, float]]]], *, x: str, log: bool = False
) -> bytes:
    """Plot curves with intervals in two or three panels, or two rows of two.

    Args:
        panels: mean and half width of the interval by x, by name, by title.
        x: label of the x axis.
        log: whether the x axis is logarithmic.
    """
    columns = 3 if len(panels) == 3 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (title, curves) in zip(grid, panels.items(), strict=True):
        for name, points in curves.items():
            places = list(points)
            mean, half = np.array(list(points.values())).T
            (line,) = axes.plot(places, mean, label=name)
            axes.fill_between(places, mean - half, mean + half, alpha=0.2, color=line.get_color(), linewidth=0)
        axes.set(title=title, xlabel=x, xscale="log" if log else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return _png(figure, dpi=100)


def intervals(panels: Mapping[str, Mapping[str, tuple[float, float]]]) -> bytes:
    """Plot means with intervals as error bars, one row for each name, in adjacent panels.

    Args:
        panels: mean and half width of the interval by name, by title; all panels have the same names.
    """
    figure = Figure(figsize=(3.2 * len(panels) + 1, 1 + 0.35 * max(map(len, panels.values()))), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (title, rows) in zip(grid.flat, panels.items(), strict=True):
        mean, half = np.array(list(rows.values())).T
        axes.errorbar(mean, list(rows), xerr=half, fmt="o", markersize=4, capsize=3)
        axes.set(title=title)
        axes.grid(alpha=0.3)
    figure.axes[0].invert_yaxis()
    return _png(figure)


def rotation_plot(images_THW: Array, probs_STC: Array, *, angles: Sequence[int], classes: Sequence[str]) -> bytes:
    """Plot the class probabilities under each mask of an image at several angles (Gal & Ghahramani 2016, figure 4).

    Args:
        images_THW: the image at each angle.
        probs_STC: probability by mask, angle and class.
        angles: angles in degrees.
        classes: names of the classes; classes that are improbable at all angles are not drawn.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    grid = figure.add_gridspec(2, len(angles), height_ratios=(4, 1))
    axes = figure.add_subplot(grid[0, :])
    jitter_S = np.linspace(-0.3, 0.3, len(probs_STC))
    for label in np.flatnonzero(probs_STC.mean(axis=0).max(axis=0) > _MIN_SHOWN_PROBABILITY):
        places_ST = np.arange(len(angles)) + jitter_S[:, None]
        axes.plot(places_ST.ravel(), probs_STC[:, :, label].ravel(), ".", alpha=0.5, markersize=4, label=classes[label])
    axes.set(xlim=(-0.5, len(angles) - 0.5), ylabel="probability under one mask")
    axes.set_xticks(range(len(angles)), [f"{angle}°" for angle in angles])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    for place, pixels_HW in enumerate(images_THW):
        below = figure.add_subplot(grid[1, place])
        below.imshow(pixels_HW, cmap="gray", vmin=0, vmax=255)
        below.axis("off")
    return _png(figure)


def heatmaps(
    grids: Mapping[str, Mapping[str, Sequence[float]]], *, columns: Sequence[str], x: str, digits: int = 2
) -> bytes:
    """Plot adjacent heat maps with the numbers in their cells.

    Args:
        grids: rows by name, by title.
        columns: names of the columns.
        x: label of the x axis.
        digits: number of decimals.
    """
    figure = Figure(figsize=(4.5 * len(grids), 4.5), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(grids), squeeze=False).flat, grids.items(), strict=True):
        cells = np.array(list(rows.values()))
        axes.imshow(cells, cmap="viridis", aspect="auto")
        middle = (cells.min() + cells.max()) / 2
        for (row, column), value in np.ndenumerate(cells):
            colour = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=9)
        axes.set(title=title, xlabel=x)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), list(rows))
    return _png(figure)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, axes: Axes) -> bytes:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _png(figure)


def _png(figure: Figure, *, dpi: int = 120) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    return png.getvalue()
