"""Coverage of static and adaptive sets on images that change: `python -m training.coverage_stream`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from model import Artifact, find_calibration, load_artifact
from model.adaptive_conformal import METHODS, STEP, move_threshold, next_offsets
from model.artifact import ArtifactError, write_atomically
from model.calibration import COVERAGES, nonconformity_scores
from model.coverage import Coverage, thresholds, tolerated_misses
from training import plots
from training.data import DataError, FashionMNIST, Images, load_fashion_mnist, split_data
from training.estimates import Estimators, estimate
from training.recalibrate import calibration_images
from training.shifts import CORRUPTIONS, SEVERITIES, corrupt_images, rotate
from training.terminal import ArtifactArgument, DataOption, console, exit_with_error

Array = np.ndarray

SAMPLES = 100  # masks
IMAGES = 4000  # of a stream
WINDOW = 500  # images
ANGLE = 40.0  # degrees at the end of the stream
ABRUPT_ANGLES = (5, 10, 15, 20, 30)  # degrees
BEFORE = 2000  # images before an abrupt change
RUNS = 20
ALARM = 100.0  # evidence of the alert
STEPS = (0.05, 0.1, 0.2, 0.4, 0.8)  # candidates of the step size
_SEED = 0

app = typer.Typer(add_completion=False)


class CoverageStream:
    """True classes' scores of images by the methods of prediction sets, and what follows from them.

    Args:
        artifact: the model.

    Raises:
        ArtifactError: it is not calibrated for 100 masks, or see `calibration_images`.
    """

    def __init__(self, artifact: Artifact) -> None:
        calibration = find_calibration(artifact.calibrations, "masks", SAMPLES)
        if calibration is None:
            raise ArtifactError(f"calibrations: expected one for {SAMPLES} masks, got none: use training.recalibrate")
        self._estimators, self._calibration = Estimators.of_artifact(artifact), calibration
        self.thresholds_ML = thresholds(calibration)
        self._tolerated_L = tolerated_misses(calibration_images(artifact))

    def scores(self, images: Images) -> tuple[Array, Array]:
        """Scores of all classes, (M, B, C), and of the true class, (B, M)."""
        found = estimate(self._estimators, images, samples=(SAMPLES,), seed=_SEED, console=console)
        probs_BC = self._calibration.probabilities(found["masks", SAMPLES]["probs_BC"])
        uniform_B = np.random.default_rng(_SEED).random(len(images))
        scores_MBC = np.stack([nonconformity_scores(probs_BC, uniform_B, method=method) for method in METHODS])
        return scores_MBC, scores_MBC[:, np.arange(len(images)), images.labels_B.numpy()].T

    def follow(self, scores_BM: Array) -> list[Coverage]:
        """The state before the first image and after each."""
        states = [Coverage.start()]
        for score_M in scores_BM:
            states.append(states[-1].after(score_M, self.thresholds_ML, self._tolerated_L))
        return states

    def alarm(self, states: list[Coverage]) -> int | None:
        """Number of images until the alarm; None without one."""
        tested_ML = ~np.isnan(self.thresholds_ML)
        return next((state.images for state in states if state.evidence(tested_ML) >= ALARM), None)


def follow_one(scores_B: Array, threshold: float, *, coverage: float, step: float) -> tuple[Array, Array]:
    """Follow feedback by one threshold with any step size.

    Args:
        scores_B: scores of the true classes.
        threshold: the calibrated threshold.
        coverage: the requested coverage.
        step: the step size, in log-odds.

    Returns:
        Whether each set has the true class, and the moved threshold of each set, both (B,).
    """
    offset, threshold_B, is_covered_B = np.zeros(()), np.empty(len(scores_B)), np.empty(len(scores_B), bool)
    for image, score in enumerate(scores_B):
        threshold_B[image] = move_threshold(threshold, float(offset))
        is_covered_B[image] = score <= threshold_B[image]
        offset = next_offsets(offset, ~is_covered_B[image], np.array(coverage), step=step)
    return is_covered_B, threshold_B


def _growing(images: Images, count: int, change: Callable[[Images, float], Images]) -> Images:
    """Change images one by one, by a part of the change that grows from 0 to 1."""
    parts = [change(images[place : place + 1], place / (count - 1)) for place in range(count)]
    return Images(torch.cat([one.images_B for one in parts]), torch.cat([one.labels_B for one in parts]))


def _permuted(images: Images, rng: np.random.Generator) -> Images:
    return images[torch.from_numpy(rng.permutation(len(images)))]


def compare_steps(stream: CoverageStream, images: Images) -> dict[str, dict[str, float]]:
    """Adaptive lac sets for 0.9 of calibration images, by step size.

    Returns:
        The lowest coverage in a window while the severity of a corruption grows from 0 to 5, by the corruption's name;
        and the mean number of classes without a corruption, "classes".
    """
    rng = np.random.default_rng(_SEED)
    threshold = float(stream.thresholds_ML[METHODS.index("lac"), COVERAGES.index(0.9)])
    found: dict[str, dict[str, float]] = {f"{step:g}": {} for step in STEPS}
    stage_B = np.arange(IMAGES) * (len(SEVERITIES) + 1) // IMAGES
    for name in CORRUPTIONS:
        order, parts = _permuted(images, rng)[:IMAGES], []
        for stage in range(len(SEVERITIES) + 1):
            members = order[torch.from_numpy(stage_B == stage)]
            parts.append(stream.scores(corrupt_images(members, name, stage) if stage else members)[1])
        scores_B = np.concatenate(parts)[:, METHODS.index("lac")]
        for step in STEPS:
            is_covered_B, _ = follow_one(scores_B, threshold, coverage=0.9, step=step)
            found[f"{step:g}"][name] = min(_windows(is_covered_B))
    scores_MBC, scores_BM = stream.scores(_permuted(images, rng)[:IMAGES])
    for step in STEPS:
        _, threshold_B = follow_one(scores_BM[:, METHODS.index("lac")], threshold, coverage=0.9, step=step)
        sizes_B = (scores_MBC[METHODS.index("lac")] <= threshold_B[:, None]).sum(axis=1)
        found[f"{step:g}"]["classes"] = round(float(sizes_B.mean()), 4)
    return found


def follow_rotation(stream: CoverageStream, test: Images) -> dict[str, Any]:
    """Coverage and size of static and adaptive sets while the rotation grows, in windows; and the alarm."""
    chosen = _permuted(test, np.random.default_rng(_SEED))[:IMAGES]
    images = _growing(chosen, IMAGES, lambda one, part: rotate(one, ANGLE * part))
    scores_MBC, scores_BM = stream.scores(images)
    states = stream.follow(scores_BM)
    rows: dict[str, Any] = {}
    for row, method in enumerate(METHODS):
        for column, level in enumerate(COVERAGES):
            static = float(stream.thresholds_ML[row, column])
            moved_B = np.array([move_threshold(static, float(state.offsets_ML[row, column])) for state in states[:-1]])
            for name, threshold_B in (("static", np.full(IMAGES, static)), ("adaptive", moved_B)):
                rows[f"{method} {level:g} {name}"] = {
                    "coverage": _windows(scores_BM[:, row] <= threshold_B),
                    "classes": _windows((scores_MBC[row] <= threshold_B[:, None]).sum(axis=1)),
                }
    alarm = stream.alarm(states)
    return {"sets": rows, "alarm": alarm, "alarm_degrees": None if alarm is None else ANGLE * alarm / (IMAGES - 1)}


def count_alarms(stream: CoverageStream, test: Images) -> dict[str, Any]:
    """Runs with an alarm without any change, and delays of the alarm after abrupt rotations."""
    rng = np.random.default_rng(_SEED)
    _, scores_BM = stream.scores(test)
    orders = [rng.permutation(len(test)) for _ in range(RUNS)]
    false_alarms = sum(stream.alarm(stream.follow(scores_BM[order])) is not None for order in orders)
    delays: dict[str, list[int | None]] = {}
    coverage: dict[str, float] = {}
    for degrees in ABRUPT_ANGLES:
        _, rotated_BM = stream.scores(rotate(test, degrees))
        coverage[str(degrees)] = round(float((rotated_BM[:, :1] <= stream.thresholds_ML[0, 1]).mean()), 4)
        delays[str(degrees)] = []
        for order in orders:
            changed_BM = np.concatenate([scores_BM[order[:BEFORE]], rotated_BM[order[BEFORE : BEFORE + WINDOW]]])
            alarm = stream.alarm(stream.follow(changed_BM))
            delays[str(degrees)].append(None if alarm is None else alarm - BEFORE)
    return {
        "runs": RUNS,
        "images": len(test),
        "false_alarms": false_alarms,
        "delays": delays,
        "coverage_lac_0.9": coverage,
    }


def _windows(values_B: Array) -> list[float]:
    means: list[float] = values_B.reshape(-1, WINDOW).mean(axis=1).round(4).tolist()
    return means


def _plot(rotation: Mapping[str, Any]) -> bytes:
    """Coverage at 0.9 in windows against the angle in their middle."""
    angles = [round(ANGLE * (place + 0.5) * WINDOW / IMAGES, 2) for place in range(IMAGES // WINDOW)]
    curves = {
        f"{method}, {name}": dict(zip(angles, rotation["sets"][f"{method} 0.9 {name}"]["coverage"], strict=True))
        for method in METHODS
        for name in ("static", "adaptive")
    }
    curves["requested"] = dict.fromkeys(angles, 0.9)
    return plots.lines(curves, x="rotation in degrees", y=f"coverage over {WINDOW} images")


def _measure(artifact: Artifact, fashion: FashionMNIST) -> dict[str, Any]:
    stream = CoverageStream(artifact)
    calibration = split_data(fashion.train, images_per_part=calibration_images(artifact), validate=False).calibration
    return {
        "step": STEP,
        "steps": compare_steps(stream, calibration),
        "rotation": follow_rotation(stream, fashion.test),
        "alarms": count_alarms(stream, fashion.test),
    }


@app.command()
def main(
    artifact: ArtifactArgument = None,
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the figure.")] = Path("runs/coverage"),
) -> None:
    """Measure coverage and alarms on Fashion-MNIST, and write coverage.json and coverage.png."""
    torch.set_num_threads(1)
    try:
        found = _measure(load_artifact(artifact), load_fashion_mnist(data))
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "coverage.json", (json.dumps(found, indent=1) + "\n").encode())
        write_atomically(out / "coverage.png", _plot(found["rotation"]))
    except (DataError, ArtifactError, OSError) as error:
        exit_with_error(str(error))
    console.print_json(json.dumps(found))


if __name__ == "__main__":
    app()
