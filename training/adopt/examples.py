"""Example images of an adopted network, for the page: test images as the network sees them."""

from collections.abc import Callable

import numpy as np

from model.examples import MAX_EXAMPLES, MAX_NAME, Example
from training.adopt.labelled_images import LabelledImages
from training.adopt.stored_images import StoredImage
from training.examples import make_example


def choose_examples(
    labelled: LabelledImages, prepare: Callable[[StoredImage], np.ndarray], seed: int, count: int = MAX_EXAMPLES
) -> list[Example]:
    """Choose images at random, of as many classes as possible, and name them after their classes.

    Args:
        labelled: images that the network was neither trained nor calibrated with.
        prepare: makes uint8 pixels, (H, W) or (H, W, 3), of the network's size.
        seed: of the choice.
        count: number of examples; fewer if there are fewer images.
    """
    order = np.random.default_rng(seed).permutation(len(labelled))
    turn_N = np.empty(len(labelled), np.int64)  # 0 for the first image of each class, 1 for the second
    for label in np.unique(labelled.labels_N):
        members = order[labelled.labels_N[order] == label]
        turn_N[members] = np.arange(len(members))
    chosen = order[np.argsort(turn_N[order], kind="stable")][:count]
    chosen = chosen[np.argsort(labelled.labels_N[chosen], kind="stable")]
    names = [labelled.classes[label][:MAX_NAME] or "no name" for label in labelled.labels_N[chosen]]
    return [make_example(name, prepare(labelled.images[one])) for name, one in zip(names, chosen, strict=True)]
