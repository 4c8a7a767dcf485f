"""Adopt a network that somebody else trained: `mcd adopt package.module:factory --images FOLDER --out DIR`."""

import hashlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track
from rich.table import Table

from model import save_compiled
from model.artifact import ArtifactError
from model.calibration import SAMPLES, Calibration, find_calibration
from model.graph import Graph
from model.input_spec import InputSpec, Polarity
from model.moments import MAX_CLASSES, ChainMoments
from model.network.compile import Compiled, compile_to_files
from model.network.moments import sobol_points
from model.network.tracing import CompileError
from model.novelty import FeatureNovelty
from service.inference.errors import ImageError
from training.adopt.examples import choose_examples
from training.adopt.guarantees import check_guarantees, missing_guarantees
from training.adopt.inputs import NORMALIZATIONS, input_spec, prepare_file
from training.adopt.labelled_files import ImagesError, LabelledFiles, find_images, read_classes
from training.adopt.networks import NetworkError, load_network
from training.adopt.novelty import LEAST_IMAGES, fit_feature_novelty
from training.adopt.scores import SEED, measure_images
from training.calibrate import fit_calibration
from training.estimates import Estimates
from training.measure import measure_one
from training.tables import prediction_tables
from training.terminal import console, error_console
from training.versions import software_versions

PROGRESS = "progress"
EXAMPLE = "example.png"
_LEAST_IMAGES = 20
_TYPICAL_SAMPLES = 100
_SECONDS = 600.0  # that the masks of all images may take; more samples than that allows are not calibrated

Normalize = StrEnum("Normalize", {name: name for name in NORMALIZATIONS})
Resizing = StrEnum("Resizing", {name: name for name in ("fit", "crop", "stretch")})
Polarities = StrEnum("Polarities", {name: name for name in get_args(Polarity)})

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    network: Annotated[
        str, typer.Argument(help="package.module:factory, or package.module:network.", metavar="NETWORK")
    ],
    *,
    images: Annotated[
        Path, typer.Option(help="Labelled images: a folder of class folders, files named after classes, or a CSV file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifact.")],
    size: Annotated[str, typer.Option(help="Sides of the network's input: N, or HEIGHTxWIDTH.")],
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes, one a line, in the order of the network's outputs.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="State dict: safetensors, or saved by torch.")] = None,
    arguments: Annotated[str, typer.Option(help="Keyword arguments of the factory, a JSON object.")] = "{}",
    channels: Annotated[int, typer.Option(help="1 for grey, 3 for RGB.")] = 3,
    normalize: Annotated[Normalize, typer.Option(help="Mean and standard deviation of the network's training.")] = (
        Normalize["none"]
    ),
    mean: Annotated[str, typer.Option(help="Mean of each channel, comma-separated, instead of --normalize.")] = "",
    std: Annotated[str, typer.Option(help="Standard deviation of each channel, as --mean.")] = "",
    resize: Annotated[Resizing, typer.Option(help="How an image of another size becomes one of this size.")] = (
        Resizing["crop"]
    ),
    crop_fraction: Annotated[float, typer.Option(help="Part of the sides that `crop` keeps.")] = 0.875,
    polarity: Annotated[
        Polarities, typer.Option(help="light-on-dark inverts images with a light border.")
    ] = Polarities["any"],
    calibration_fraction: Annotated[
        float, typer.Option(min=0.1, max=0.9, help="Part of the images to calibrate with; the others test it.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
) -> None:
    """Compile a classifier with dropout, calibrate it on labelled images, and write an artifact to serve.

    What was computed is kept in OUT/progress until the artifact is written: after Ctrl-C, the same command goes on.
    """
    torch.set_num_threads(1)
    try:
        spec = input_spec(
            size, channels, normalize.value, mean, std,
            resize=resize.value, crop_fraction=crop_fraction, polarity=polarity.value,
        )  # fmt: skip
        files = find_images(images, None if classes is None else read_classes(classes))
        if len(files) < _LEAST_IMAGES:
            raise ImagesError(
                f"{images}: {len(files)} images are too few to calibrate and to test: give {_LEAST_IMAGES} or more"
            )
        _adopt(load_network(network, arguments, weights), files, spec, out, calibration_fraction, seed)
    except (NetworkError, ImagesError, CompileError, ArtifactError, ImageError, ValueError, OSError) as error:
        error_console.print(f"error: {' '.join(str(error).split())}", style="bold red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        error_console.print("interrupted: the same command goes on", style="bold red")
        raise typer.Exit(130) from None


def _adopt(
    module: torch.nn.Module, files: LabelledFiles, spec: InputSpec, out: Path, fraction: float, seed: int
) -> None:
    prepare = partial(prepare_file, spec=spec)
    example = prepare(files.paths[0])
    compiled = compile_to_files(module, spec.normalize(example[None]))
    engine = compiled.graph()
    if engine.spec.classes != len(files.classes):
        raise ImagesError(
            f"the network has {engine.spec.classes} outputs, but there are {len(files.classes)} classes: "
            "name all of them with --classes, in the order of the network's outputs"
        )
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(example).save(out / EXAMPLE)
    seconds = _time(engine, spec.normalize(example[None]))
    _show_network(compiled, seconds)
    console.print(f"{files.paths[0].name} as the network sees it: {out / EXAMPLE}")
    calibrating, testing = files.split(seed, fraction)
    samples = _affordable(seconds, len(files))
    identity = _identity(compiled, spec)
    moments = _moments(compiled, engine)
    found: list[tuple[Estimates, np.ndarray]] = []
    for label, part in (("calibration", calibrating), ("test", testing)):
        measured = measure_images(
            engine,
            part.paths,
            lambda path: spec.normalize(prepare(path)[None]),
            samples=samples,
            moments=moments,
            folder=out / PROGRESS / identity,
            track=partial(_track, label=f"{label}: {len(part):,} images"),
        )
        found.append(measured)
    (calibrated, features_NF), (tested, tested_features_NF) = found
    calibrations = [
        fit_calibration(**rows, labels_B=calibrating.labels_N, estimator=estimator, samples=count)
        for (estimator, count), rows in calibrated.items()
    ]
    novelty = fit_feature_novelty(features_NF, calibrated["eval", 0]["probs_BC"], seed)
    metrics = _metrics(tested, testing.labels_N, samples, calibrations)
    card = _card(files, calibrating, testing, fraction, seed, compiled, metrics)
    examples = choose_examples(testing, prepare, seed)
    save_compiled(out, compiled, card, input_spec=spec, calibrations=calibrations, novelty=novelty, examples=examples)
    for table in prediction_tables(metrics, f"{len(testing):,} test images"):
        console.print(table.as_rich())
    _show_guarantees(calibrations, tested, files, calibrating, testing, samples)
    _show_novelty(novelty, tested_features_NF, tested["eval", 0]["probs_BC"])
    shutil.rmtree(out / PROGRESS)
    console.print(f"artifact {out}")
    console.print(f"serve it: MCD_MODEL={shlex.quote(str(out.resolve()))} make serve")


def _moments(compiled: Compiled, engine: Graph) -> ChainMoments | None:
    """Moment propagation, if the network allows it."""
    if compiled.chain is None or compiled.spec.classes > MAX_CLASSES:
        return None
    return ChainMoments(compiled.chain, sobol_points(compiled.spec.classes), engine.units)


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


def _track(indices: Iterable[int], label: str) -> Iterable[int]:
    return track(list(indices), label, console=console, transient=True, disable=not console.is_terminal)


def _metrics(
    estimates: Estimates, labels_N: np.ndarray, samples: Sequence[int], calibrations: Sequence[Calibration]
) -> dict[str, Any]:
    """Figures of the test images, by mode, as `training.train` has them."""
    count = _reported(samples)
    rows = {}
    for mode, key in (("eval", ("eval", 0)), ("mc", ("masks", count)), ("moments", ("moments", 0))):
        if key not in estimates:
            continue
        calibration = find_calibration(calibrations, *key)  # type: ignore[arg-type]
        rows[mode] = measure_one(estimates[key], labels_N, calibration=calibration)  # type: ignore[index]
    rows["mc"] |= {"samples": count, "seed": SEED}
    return rows


def _reported(samples: Sequence[int]) -> int:
    """The number of masks that figures are printed for: 100, or the largest below."""
    return max(count for count in samples if count <= _TYPICAL_SAMPLES)


def _card(
    files: LabelledFiles,
    calibrating: LabelledFiles,
    testing: LabelledFiles,
    fraction: float,
    seed: int,
    compiled: Compiled,
    metrics: dict[str, Any],
) -> dict[str, Any]:
    return {
        "classes": list(files.classes),
        "command": shlex.join(["mcd", "adopt", *sys.argv[1 + (sys.argv[1:2] == ["adopt"]) :]]),
        "recipe": {"name": "adopted"},
        "seed": seed,
        "data": {
            "images": len(files),
            "split": {"calibration": len(calibrating), "test": len(testing), "fraction": fraction},
        },
        "compiled": {"difference": compiled.difference, "shared": compiled.spec.shared},
        "metrics": {"test": metrics},
        "versions": software_versions(),
    }


def _show_network(compiled: Compiled, seconds: dict[int, float]) -> None:
    table = Table(title="dropout")
    for column in ("place", "p", "shape of a mask"):
        table.add_column(column)
    for site in compiled.spec.sites:
        table.add_row(site.name or "the network itself", f"{site.p:g}", " x ".join(map(str, site.shape)))
    console.print(table)
    console.print(f"{compiled.spec.shared:.1%} of a forward pass is done once for all masks")
    console.print(
        f"largest difference from torch {compiled.difference:.1g} of the largest logit, eval mode and 32 masks"
    )
    times = ", ".join(f"{count} masks {1000 * value:.3g} ms" for count, value in seconds.items() if count)
    console.print(f"one image on one core: eval mode {1000 * seconds[0]:.3g} ms, {times}")


def _show_guarantees(
    calibrations: Sequence[Calibration],
    tested: Estimates,
    files: LabelledFiles,
    calibrating: LabelledFiles,
    testing: LabelledFiles,
    samples: Sequence[int],
) -> None:
    count = _reported(samples)
    calibration = find_calibration(calibrations, "masks", count)
    if calibration is None:
        raise ValueError("expected a calibration of the reported number of masks")
    table = Table(title=f"guarantees, {count} masks, on the test images")
    for column in ("guarantee", "found", "holds"):
        table.add_column(column)
    for guarantee, found, holds in check_guarantees(calibration, tested["masks", count]["probs_BC"], testing.labels_N):
        table.add_row(guarantee, found, "yes" if holds else "no")
    console.print(table)
    for line in missing_guarantees(calibration, len(calibrating), files.classes, files.labels_N):
        console.print(f"no guarantee for {line}")


def _show_novelty(novelty: FeatureNovelty | None, features_NF: np.ndarray, probs_NC: np.ndarray) -> None:
    """Print the false alarms among the test images, or why there is no score."""
    if novelty is None:
        console.print(f"no novelty score: it needs {LEAST_IMAGES} calibration images with features that differ")
        return
    scores_N = novelty.score(features_NF, probs_NC)
    for rate, threshold in novelty.thresholds.items():
        if threshold is None:
            console.print(
                f"no guarantee for {rate:.1%} false alarms of the novelty score: there are too few calibration images"
            )
        else:
            console.print(
                f"novelty: {(scores_N > threshold).mean():.1%} of the test images flagged, {rate:.1%} allowed"
            )


if __name__ == "__main__":
    app()
