"""Example images of an adopted network, for the page: test images as the network sees them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.examples import MAX_EXAMPLES, MAX_NAME, Example
from training.adopt.labelled_files import LabelledFiles
from training.examples import make_example


def choose_examples(
    files: LabelledFiles, prepare: Callable[[Path], np.ndarray], seed: int, count: int = MAX_EXAMPLES
) -> list[Example]:
    """Choose images at random, of as many classes as possible, and name them after their classes.

    Args:
        files: images that the network was neither trained nor calibrated with.
        prepare: makes uint8 pixels, (H, W) or (H, W, 3), of the network's size.
        seed: of the choice.
        count: number of examples; fewer if there are fewer images.
    """
    order = np.random.default_rng(seed).permutation(len(files))
    turn_N = np.empty(len(files), np.int64)  # 0 for the first image of each class, 1 for the second
    for label in np.unique(files.labels_N):
        members = order[files.labels_N[order] == label]
        turn_N[members] = np.arange(len(members))
    chosen = order[np.argsort(turn_N[order], kind="stable")][:count]
    chosen = chosen[np.argsort(files.labels_N[chosen], kind="stable")]
    names = [files.classes[label][:MAX_NAME] or "no name" for label in files.labels_N[chosen]]
    return [make_example(name, prepare(files.paths[one])) for name, one in zip(names, chosen, strict=True)]
