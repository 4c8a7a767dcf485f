"""How well the novelty score of an adopted network finds images of other kinds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.graph import Graph
from model.input_spec import InputSpec
from model.novelty import FeatureNovelty
from training.adopt.errors import ImagesError
from training.adopt.image_arrays import images_of_array, is_array_file
from training.adopt.inputs import prepare_image
from training.adopt.labelled_images import image_files
from training.adopt.poses import as_pixels, as_unit_range
from training.adopt.printing import show_progress
from training.adopt.stored_images import ImageFile, StoredImage
from training.metrics import detection_metrics
from training.poses import affine

Array = np.ndarray

_MOST_IMAGES, _MOST_TRANSFORMED = 1000, 200  # of one kind
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
        kinds[name] = _spread(_find(Path(source)), _MOST_IMAGES)
    return kinds


def measure_other_images(
    engine: Graph,
    novelty: FeatureNovelty,
    spec: InputSpec,
    inside_N: Array,
    kinds: Mapping[str, Iterable[Array]],
) -> dict[str, dict[str, float]]:
    """Measure the novelty score on uniform noise, and on other kinds of images.

    Args:
        engine: the compiled network.
        novelty: its novelty model.
        spec: what it takes.
        inside_N: novelty scores of test images.
        kinds: uint8 pixels of out-of-distribution images, (H, W) or (H, W, 3), by name.

    Returns:
        By name: "images", their number; `detection_metrics`; and "flagged at RATE" for each false-alarm rate that has a
        threshold, the share of the images whose score exceeds it.
    """
    noise = np.random.default_rng(_NOISE_SEED).integers(0, 256, (_NOISE_IMAGES, *spec.pixel_shape), np.uint8)
    scores = {name: _score(engine, novelty, spec, pixels) for name, pixels in ({"noise": noise} | dict(kinds)).items()}
    thresholds = {rate: threshold for rate, threshold in novelty.thresholds.items() if threshold is not None}
    return {
        name: {"images": len(outside_N)}
        | detection_metrics(inside_N, outside_N)
        | {f"flagged at {rate}": float((outside_N > threshold).mean()) for rate, threshold in thresholds.items()}
        for name, outside_N in scores.items()
    }


def prepared(kinds: Mapping[str, Sequence[StoredImage]], spec: InputSpec) -> dict[str, Iterator[Array]]:
    """Prepare stored images as the network takes them, one after the other, with a progress bar for each kind."""

    def prepare(name: str, images: Sequence[StoredImage]) -> Iterator[Array]:
        for index in show_progress(range(len(images)), f"{name}: {len(images):,} images"):
            yield prepare_image(images[index], spec)

    return {name: prepare(name, images) for name, images in kinds.items()}


def transformed(images: Sequence[StoredImage], spec: InputSpec) -> dict[str, Iterator[Array]]:
    """Transform images, at most two hundred, in ways that the view for poses is to find."""

    def transform(name: str, images: Sequence[StoredImage]) -> Iterator[Array]:
        for index in show_progress(range(len(images)), f"{name}: {len(images):,} images"):
            image_1 = as_unit_range(prepare_image(images[index], spec)[None])
            yield as_pixels(_TRANSFORMATIONS[name](image_1))[0]

    chosen = _spread(images, _MOST_TRANSFORMED)
    return {name: transform(name, chosen) for name in _TRANSFORMATIONS}


def _affine(degrees: float = 0.0, *, shift: float = 0.0, scale: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Turn, move (in 28ths of the sides) and scale an image."""
    degrees_1, shift_21, scale_1 = torch.tensor([degrees]), torch.full((2, 1), shift), torch.tensor([scale])
    return lambda image_1: affine(image_1, degrees_1, shift_21, scale_1, "border")


def _cover(image_1: Tensor) -> Tensor:
    """Make the middle of an image black: three sevenths of its sides."""
    height, width = image_1.shape[2:]
    covered_1 = image_1.clone()
    covered_1[..., 2 * height // 7 : -(2 * height // 7), 2 * width // 7 : -(2 * width // 7)] = 0
    return covered_1


_TRANSFORMATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"test images turned by {degrees:g}°": _affine(degrees) for degrees in (15.0, 90.0, 180.0, 270.0)},
    "test images moved by a seventh of the sides": _affine(shift=4.0),
    "test images reduced to 70 %": _affine(scale=0.7),
    "test images covered in the middle": _cover,
    "test images upside down, by a mirror": lambda image_1: image_1.flip(2),
}


def _score(engine: Graph, novelty: FeatureNovelty, spec: InputSpec, pixels: Iterable[Array]) -> Array:
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


def _spread(images: Sequence[StoredImage], most: int) -> list[StoredImage]:
    count = min(len(images), most)
    return [images[index * len(images) // count] for index in range(count)]
