"""What an ensemble costs: the time for one image, relative to that of one of its networks."""

import time
from collections.abc import Callable

import numpy as np

from model.graph import Graph

_SAMPLES = (0, 30, 100)
_SECONDS = 1.0  # of measurements for each number of masks
_LEAST_ROUNDS = 3


def relative_cost(ensemble: Graph, member: Graph, image_1: np.ndarray) -> dict[str, float]:
    """Measure an ensemble and one of its networks in turn, on one thread.

    Args:
        ensemble: the graph of all networks.
        member: the graph of one of them.
        image_1: an image, (1, C, H, W) float32.

    Returns:
        Median time of the ensemble over that of the member, by "eval" and number of masks, to two digits.
    """
    return {
        str(samples or "eval"): float(
            f"{_ratio(_predict(ensemble, image_1, samples), _predict(member, image_1, samples)):.2g}"
        )
        for samples in _SAMPLES
    }


def _predict(graph: Graph, image_1: np.ndarray, samples: int) -> Callable[[], object]:
    return (lambda: graph.estimate(image_1, samples)) if samples else (lambda: graph.predict(image_1))


def _ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    seconds: list[list[float]] = []
    started = time.perf_counter()
    while len(seconds) <= _LEAST_ROUNDS or time.perf_counter() - started < _SECONDS:
        seconds.append([_time(one), _time(other)])
    first, second = np.median(seconds[1:], axis=0)  # without the first, which pays costs of one time
    return float(first / second)


def _time(predict: Callable[[], object]) -> float:
    begun = time.perf_counter()
    predict()
    return time.perf_counter() - begun
