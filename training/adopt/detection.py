"""How well the novelty score of an adopted network finds images of other kinds."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from model.graph import Graph
from model.input_spec import InputSpec
from model.novelty import FeatureNovelty
from training.adopt.errors import ImagesError
from training.adopt.image_arrays import images_of_array, is_array_file
from training.adopt.inputs import prepare_image
from training.adopt.labelled_images import image_files
from training.adopt.printing import show_progress
from training.adopt.stored_images import ImageFile, StoredImage
from training.metrics import detection_metrics

Array = np.ndarray

_MOST_IMAGES = 1000  # of one kind
_NOISE_IMAGES, _NOISE_SEED = 100, 0


def read_other_images(arguments: Sequence[str]) -> dict[str, list[StoredImage]]:
    """Find out-of-distribution images, at most a thousand of each kind, spread over all of them.

    Args:
        arguments: NAME=PATH each: a folder with image files, or an .npy or IDX file.

    Raises:
        ImagesError: an argument has another form, a name occurs twice, or there are no images.
    """
    kinds: dict[str, list[StoredImage]] = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if not (name and equals and source) or name in kinds:
            raise ImagesError(f"--ood must be NAME=PATH, each name once, got {argument}")
        kinds[name] = _spread(_find(Path(source)))
    return kinds


def measure_other_images(
    engine: Graph,
    novelty: FeatureNovelty,
    spec: InputSpec,
    inside_N: Array,
    kinds: Mapping[str, Sequence[StoredImage]],
) -> dict[str, dict[str, float]]:
    """Measure the novelty score on uniform noise, and on other kinds of images.

    Args:
        engine: the compiled network.
        novelty: its novelty model.
        spec: what it takes.
        inside_N: novelty scores of test images.
        kinds: out-of-distribution images by name.

    Returns:
        By name: "images", their number; `detection_metrics`; and "flagged at RATE" for each false-alarm rate that has a
        threshold, the share of the images whose score exceeds it.
    """
    noise = np.random.default_rng(_NOISE_SEED).integers(0, 256, (_NOISE_IMAGES, *spec.pixel_shape), np.uint8)
    scores = {"noise": _score(engine, novelty, spec, iter(noise))}
    for name, images in kinds.items():
        indices = show_progress(range(len(images)), f"{name}: {len(images):,} images")
        scores[name] = _score(engine, novelty, spec, (prepare_image(images[index], spec) for index in indices))
    thresholds = {rate: threshold for rate, threshold in novelty.thresholds.items() if threshold is not None}
    return {
        name: {"images": len(outside_N)}
        | detection_metrics(inside_N, outside_N)
        | {f"flagged at {rate}": float((outside_N > threshold).mean()) for rate, threshold in thresholds.items()}
        for name, outside_N in scores.items()
    }


def _score(engine: Graph, novelty: FeatureNovelty, spec: InputSpec, pixels: Iterator[Array]) -> Array:
    scores = []
    for one in pixels:
        image_1 = spec.normalize(one[None])
        probs_1C, features_1F = engine.predict_with_features(image_1)
        scores.append(novelty.score(features_1F, probs_1C, image_1))
    return np.concatenate(scores)


def _find(source: Path) -> Sequence[StoredImage]:
    if source.is_dir():
        images: Sequence[StoredImage] = [ImageFile(path) for path in image_files(source)]
    elif is_array_file(source):
        images = images_of_array(source)
    else:
        raise ImagesError(f"--ood {source}: expected a folder of images, or an .npy or IDX file")
    if not images:
        raise ImagesError(f"--ood {source}: no images found")
    return images


def _spread(images: Sequence[StoredImage]) -> list[StoredImage]:
    count = min(len(images), _MOST_IMAGES)
    return [images[index * len(images) // count] for index in range(count)]
