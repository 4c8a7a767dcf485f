"""Adopts a network: compiles it, measures it on labelled images, calibrates it, and writes the artifact."""

import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from model import Artifact, save_compiled
from model.artifact import write_atomically
from model.calibration import SAMPLES
from model.graph import Graph
from model.input_spec import InputSpec
from model.network.compile import Compiled
from training.adopt.compiling import compile_sources
from training.adopt.errors import ImagesError, OutputError
from training.adopt.examples import choose_examples
from training.adopt.guarantees import check_guarantees, guarantees_as_json, missing_guarantees
from training.adopt.inputs import check_images, prepare_image
from training.adopt.labelled_images import LabelledImages
from training.adopt.model_card import Statements, write_model_card
from training.adopt.novelty import Scored, fit_novelty, measure_novelty
from training.adopt.printing import (
    show_cost,
    show_detection,
    show_guarantees,
    show_network,
    show_novelty,
    show_progress,
    warn_of_chance,
)
from training.adopt.scores import SEED, measure_images
from training.adopt.stored_images import StoredImage, as_png
from training.adopt.wording import counted
from training.calibrate import fit_calibration
from training.estimates import Estimates, Estimators
from training.measure import measure, measure_class_coverage
from training.tables import prediction_tables
from training.terminal import console
from training.versions import software_versions

PROGRESS = "progress"
EXAMPLE = "example.png"
_LEAST_IMAGES = 20
_TYPICAL_SAMPLES = 100
_SECONDS = 600.0  # that the masks of all images may take; more samples than that allows are not calibrated


def adopt(  # noqa: PLR0913 - one argument an option
    networks: Sequence[torch.nn.Module | Artifact],
    labelled: LabelledImages,
    spec: InputSpec,
    out: Path,
    *,
    fraction: float,
    seed: int,
    inject: float | None,
    poses: bool,
    statements: Statements,
    others: Mapping[str, Sequence[StoredImage]],
) -> None:
    """Compile a network, measure it on labelled images, calibrate it, and write the artifact; print what is found.

    Several networks are compiled to one, an ensemble.

    What was measured is kept in `out`/progress until the artifact is written.

    Args:
        networks: a module from images (B, C, H, W) to logits (B, K), or an artifact to calibrate again; and the further
            members of an ensemble.
        labelled: images, 20 or more, of K classes.
        spec: what the network takes.
        out: folder of the artifact; created if missing.
        fraction: of the images to calibrate with; the others test the guarantees.
        seed: of the split.
        inject: probability of the dropout to insert into a network that has none; None to insert none.
        poses: whether the novelty score gets a view for poses.
        statements: for the card.
        others: out-of-distribution images by name, to measure the novelty score with.

    Raises:
        OutputError: `out` can't be written to.
        ImagesError: too few images, images that can't be decoded, or another number of classes than the network has.
        CompileError, NetworkError, ArtifactError: the network can't be compiled.
        ImageError: a file was replaced by another meanwhile, which can't be decoded.
    """
    check_folder(out)
    if len(labelled) < _LEAST_IMAGES:
        raise ImagesError(f"{len(labelled)} images are too few to calibrate and to test: give {_LEAST_IMAGES} or more")
    images = [*labelled.images, *itertools.chain(*others.values())]
    check_images(images, spec, track=partial(show_progress, label=f"decoding: {len(images):,} images"))
    example = prepare_image(labelled.images[0], spec)
    source = compile_sources(networks, spec.normalize(example[None]), inject)
    compiled = source.compiled
    check_classes(compiled.spec.classes, len(labelled.classes))
    estimators = Estimators.of_compiled(compiled)
    engine = estimators.masks
    seconds = _time(engine, spec.normalize(example[None]))
    out.mkdir(parents=True, exist_ok=True)
    _show_example(out / EXAMPLE, example if statements.pictures else None, labelled.images[0].name)
    show_network(compiled, seconds)
    show_cost(compiled.spec.members, source.entries.get("cost", {}))
    if injected := source.entries.get("injected_dropout"):
        console.print(f"dropout of p {injected['p']:g} inserted before {injected['before'] or 'the network'}")

    parts = labelled.split(seed, fraction)
    samples = _affordable(seconds, len(labelled))
    progress = out / PROGRESS / _identity(compiled, spec)
    (calibrated, features_NF), (tested, tested_features_NF) = _measure(estimators, parts, spec, samples, progress)
    calibrating, testing = parts
    calibrations = [
        fit_calibration(**rows, labels_B=calibrating.labels_N, estimator=estimator, samples=count)
        for (estimator, count), rows in calibrated.items()
    ]
    scored = [
        Scored(part.images, features, found["eval", 0]["probs_BC"])
        for part, features, found in (
            (calibrating, features_NF, calibrated),
            (testing, tested_features_NF, tested),
        )
    ]
    novelty = fit_novelty(engine, spec, scored[0], seed, folder=progress if poses else None)
    inside_N, detection = measure_novelty(engine, spec, novelty, scored[1], others)
    reported = max(count for count in samples if count <= _TYPICAL_SAMPLES)
    metrics = measure(tested, testing.labels_N, samples=reported, seed=SEED, calibrations=calibrations)
    by_class = measure_class_coverage(
        tested, testing.labels_N, samples=reported, classes=labelled.classes, calibrations=calibrations
    )
    calibration = next(one for one in calibrations if (one.estimator, one.samples) == ("masks", reported))
    guarantees = check_guarantees(calibration, tested["masks", reported]["probs_BC"], testing.labels_N)
    missing = missing_guarantees(calibration, len(calibrating), labelled.classes, labelled.labels_N)
    card = {
        "classes": list(labelled.classes),
        "command": statements.command,
        "recipe": {"name": "adopted"},
        "seed": seed,
        "data": {
            "images": len(labelled),
            "split": {"calibration": len(calibrating), "test": len(testing), "fraction": fraction},
        },
        "metrics": {"test": metrics, "classes": by_class, "ood": detection},
        "guarantees": guarantees_as_json(guarantees, missing),
        "versions": software_versions(),
    } | source.entries
    if statements.intended_use:
        card["intended_use"] = statements.intended_use
    examples = choose_examples(testing, lambda image: prepare_image(image, spec), seed) if statements.pictures else []
    save_compiled(out, compiled, card, input_spec=spec, calibrations=calibrations, novelty=novelty, examples=examples)
    pixels = (lambda index: prepare_image(testing.images[index], spec)) if statements.pictures else None
    write_model_card(out, tested, testing, calibration, pixels=pixels)
    shutil.rmtree(out / PROGRESS)

    for table in prediction_tables(metrics, f"{len(testing):,} test images"):
        console.print(table.as_rich())
    warn_of_chance(tested["eval", 0]["probs_BC"], testing.labels_N)
    show_guarantees(guarantees, reported)
    for line in missing:
        console.print(f"no guarantee for {line}")
    show_novelty(novelty, inside_N)
    show_detection(detection)


def check_folder(out: Path) -> None:
    """Check that a folder is there, or can be made, and can be written to.

    Raises:
        OutputError: it can't.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise OutputError(f"--out {out}: {existing} is a file: give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"--out {out}: {existing} can't be written to: give another folder")


def _show_example(path: Path, example: np.ndarray | None, name: str) -> None:
    """Write the image as the network sees it; without pictures, remove that of an earlier adoption."""
    if example is None:
        path.unlink(missing_ok=True)
        console.print(f"{path.name}, an image as the network sees it, is not written with --no-pictures")
        return
    write_atomically(path, as_png(example))
    console.print(f"{name} as the network sees it: {path}")


def check_classes(outputs: int, classes: int) -> None:
    """Compare the number of a network's outputs with that of the classes.

    Raises:
        ImagesError: they differ.
    """
    if outputs == classes:
        return
    found = f"the network has {counted(outputs, 'output', 'outputs')}"
    given = f"there {'is' if classes == 1 else 'are'} {counted(classes, 'class', 'classes')}"
    if classes > outputs:
        raise ImagesError(
            f"{found}, but {given}: leave the images of other classes out, or take the "
            "network of these classes; if their names are integers, give --classes with one name for each output"
        )
    raise ImagesError(f"{found}, but {given}: name all of them with --classes, in the order of the network's outputs")


def _measure(
    estimators: Estimators[Graph],
    parts: Sequence[LabelledImages],
    spec: InputSpec,
    samples: Sequence[int],
    progress: Path,
) -> list[tuple[Estimates, np.ndarray]]:
    """Measure the images for calibration, and those for the test."""
    return [
        measure_images(
            estimators,
            part.images,
            lambda image: spec.normalize(prepare_image(image, spec)[None]),
            samples=samples,
            folder=progress,
            track=partial(show_progress, label=f"{label}: {len(part):,} images"),
        )
        for label, part in zip(("calibration", "test"), parts, strict=True)
    ]


def _identity(compiled: Compiled, spec: InputSpec) -> str:
    """Identify network and input specification, for results that are kept."""
    digest = hashlib.sha256(repr(spec).encode())
    for name in sorted(compiled.files):
        digest.update(compiled.files[name])
    return digest.hexdigest()


def _time(engine: Graph, image_1: np.ndarray) -> dict[int, float]:
    """Seconds for one image in eval mode (0) and under masks, the shortest of three."""
    seconds = {}
    for samples in (0, 30, _TYPICAL_SAMPLES):
        runs = []
        for _ in range(3):
            begun = time.perf_counter()
            engine.sample(image_1, samples, SEED) if samples else engine.predict(image_1)
            runs.append(time.perf_counter() - begun)
        seconds[samples] = min(runs)
    return seconds


def _affordable(seconds: dict[int, float], images: int) -> tuple[int, ...]:
    """Numbers of masks to calibrate for: 10, and those that take ten minutes for all images at most."""
    each = max(seconds[_TYPICAL_SAMPLES] - seconds[0], 0) / _TYPICAL_SAMPLES
    chosen = tuple(count for count in SAMPLES if count == min(SAMPLES) or each * count * images <= _SECONDS)
    if left_out := [count for count in SAMPLES if count not in chosen]:
        console.print(f"not calibrated, as it would take too long: {', '.join(map(str, left_out))} masks")
    return chosen
