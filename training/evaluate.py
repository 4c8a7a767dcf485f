"""Evaluate an artifact on test, shifted and out-of-distribution images: `python -m training.evaluate`."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from model import Artifact, Calibration, find_calibration, load_artifact
from model.artifact import write_atomically
from model.masks import MAX_SEED
from training.calibrate import fit_calibrations
from training.data import DataError, FashionMNIST, Images, load_fashion_mnist, split_data
from training.estimates import Estimates, Estimators, combine_members, estimate
from training.measure import (
    decide,
    measure,
    measure_classes,
    measure_decisions,
    measure_detection,
    measure_one,
    ood_scores,
)
from training.ood import DOWNLOADS, download_images, read_images, synthetic_images
from training.report import Evaluation, as_json, write_report
from training.shifts import ANGLES, CORRUPTIONS, SEVERITIES, shifted_images
from training.tables import all_tables
from training.terminal import ArtifactArgument, DataOption, console, error_console, exit_with_error

Array = np.ndarray

MASK_COUNTS = (2, 5, 10, 30, 100, 300)  # numbers of masks to compare
_SHIFT_METRICS = ("accuracy", "nll", "ece", "entropy", "mutual_information")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


class Evaluator:
    """Predicts images with one artifact, shows the progress, and measures the predictions."""

    def __init__(self, artifact: Artifact, fashion: FashionMNIST, *, samples: int, seed: int, steps: int) -> None:
        self.artifact, self.fashion, self.samples, self.seed = artifact, fashion, samples, seed
        self._number, self._steps = itertools.count(1), steps

    def estimates(
        self, images: Images, label: str, *, samples: Sequence[int] | None = None, artifact: Artifact | None = None
    ) -> Estimates:
        """Predict images with the artifact, or with another one."""
        label = f"[{next(self._number)}/{self._steps}] {label}"
        if not console.is_terminal:
            console.print(label)
        return estimate(
            Estimators.of_artifact(artifact or self.artifact),
            images,
            samples=samples or (self.samples,),
            seed=self.seed,
            console=console,
            label=label,
        )

    def measure(
        self, estimates: Estimates, labels_B: Array, calibrations: Sequence[Calibration] | None = None
    ) -> dict[str, Any]:
        """Measure estimates with the artifact's calibrations, or with others."""
        calibrations = self.artifact.calibrations if calibrations is None else calibrations
        return measure(estimates, labels_B, samples=self.samples, seed=self.seed, calibrations=calibrations)

    def compare(self, name: str, members: Sequence[Artifact]) -> tuple[Estimates, dict[str, Any]]:
        """Predict and measure the test images with another model, or with several as an ensemble."""
        test = self.fashion.test
        estimates = combine_members([self.estimates(test, name, artifact=member) for member in members])
        calibrations: Sequence[Calibration] = members[0].calibrations
        if len(members) > 1:
            calibrations = self._calibrate_ensemble(members)
        return estimates, self.measure(estimates, test.labels_B.numpy(), calibrations)

    def _calibrate_ensemble(self, members: Sequence[Artifact]) -> list[Calibration]:
        """Calibrate on the members' calibration images, if all members share them."""
        counts = {member.card.get("data", {}).get("split", {}).get("calibration", 0) for member in members}
        if len(counts) > 1 or 0 in counts:
            return []
        (count,) = counts
        images = split_data(self.fashion.train, images_per_part=count, validate=False).calibration
        return fit_calibrations(
            [Estimators.of_artifact(member) for member in members], images, samples=(self.samples,), console=console
        )

    def measure_by_mask_count(self, estimates: Estimates, labels_B: Array) -> dict[str, Any]:
        """Measure estimates by number of masks, calibrated where a calibration applies."""
        rows = {}
        for (estimator, count), found in estimates.items():
            if estimator == "masks":
                calibration = find_calibration(self.artifact.calibrations, "masks", count)
                rows[str(count)] = measure_one(found, labels_B, calibration=calibration)
        return rows

    def measure_decisions(
        self, estimates: Estimates, scores: Mapping[str, Array], labels_B: Array | None
    ) -> dict[str, float]:
        """Measure the decisions of the service; empty if the artifact has no calibration or novelty model."""
        decided = decide(self.artifact, estimates, scores, samples=self.samples)
        return {} if decided is None else measure_decisions(decided, estimates, labels_B, samples=self.samples)

    def measure_shifts(self) -> dict[str, dict[str, Any]]:
        """Measure rotated and corrupted test images, by kind and degree."""
        results: dict[str, dict[str, Any]] = {}
        for kind, degree, images in shifted_images(self.fashion.test):
            labels_B = images.labels_B.numpy()
            estimates = self.estimates(images, f"{kind} {degree}")
            row: dict[str, Any] = {}
            for mode, measured in self.measure(estimates, labels_B).items():
                row[mode] = {name: measured[name] for name in _SHIFT_METRICS if name in measured}
                if "calibrated" in measured:
                    row[mode]["calibrated"] = {name: measured["calibrated"][name] for name in ("nll", "ece")}
            scores = ood_scores(self.artifact, images, estimates, samples=self.samples)
            if decision := self.measure_decisions(estimates, scores, labels_B):
                row["decision"] = decision
            results.setdefault(kind, {})[degree] = row
        return results


def evaluate_artifact(
    evaluator: Evaluator, compared: Mapping[str, Sequence[Artifact]], ood_images: Mapping[str, Array]
) -> Evaluation:
    """Evaluate an artifact.

    Args:
        evaluator: evaluator of the artifact.
        compared: other models by name; several members form an ensemble.
        ood_images: out-of-distribution uint8 images (B, 28, 28) by name.
    """
    test, samples = evaluator.fashion.test, evaluator.samples
    labels_B = test.labels_B.numpy()
    own_estimates = evaluator.estimates(test, "test images", samples=sorted({*MASK_COUNTS, samples}))
    figures = evaluator.measure(own_estimates, labels_B) | {
        "masks": evaluator.measure_by_mask_count(own_estimates, labels_B),
        "classes": measure_classes(
            own_estimates,
            labels_B,
            samples=samples,
            classes=evaluator.artifact.classes,
            calibrations=evaluator.artifact.calibrations,
        ),
    }
    estimates, figures["beside"] = {"": own_estimates}, {}
    for name, members in compared.items():
        estimates[name], figures["beside"][name] = evaluator.compare(name, members)
    scores = {"test images": ood_scores(evaluator.artifact, test, own_estimates, samples=samples)}
    decisions = {"test images": evaluator.measure_decisions(own_estimates, scores["test images"], labels_B)}
    for name, images_BHW in ood_images.items():
        images = Images(torch.from_numpy(images_BHW.copy()), torch.zeros(len(images_BHW)).long())
        found = evaluator.estimates(images, name)
        scores[name] = ood_scores(evaluator.artifact, images, found, samples=samples)
        decisions[name] = evaluator.measure_decisions(found, scores[name], None)
    figures["ood"] = {name: measure_detection(scores["test images"], scores[name]) for name in ood_images}
    if all(decisions.values()):
        figures["decisions"] = decisions
    shifts = evaluator.measure_shifts()
    figures |= {"rotation": shifts.pop("rotation"), "corruptions": shifts}
    return Evaluation(evaluator.artifact, test, samples, estimates, scores, figures)


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    artifact: ArtifactArgument = None,
    *,
    samples: Annotated[int, typer.Option(min=2, help="Dropout masks to average.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the masks.")] = 0,
    data: DataOption = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of another artifact to compare with; several with one name are an ensemble."),
    ] = None,
    ood: Annotated[
        list[str] | None,
        typer.Option(
            help=f"NAME=PATH of out-of-distribution images: IDX, .npy, or a folder; or {', '.join(DOWNLOADS)}, which "
            "torchvision downloads (EMNIST: 560 MB)."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a model card in HTML with pictures.")] = None,
) -> None:
    """Measure an artifact on the test images of Fashion-MNIST, on shifted images and on out-of-distribution images.

    Prints accuracy, calibration, coverage of the prediction sets, abstention and detection of novel images as tables.
    """
    torch.set_num_threads(1)  # one image at a time: too small to share
    try:
        if out is not None and not out.parent.is_dir():
            raise FileNotFoundError(f"--out: there is no folder {out.parent}")
        loaded, fashion = load_artifact(artifact), load_fashion_mnist(data)
        compared: dict[str, list[Artifact]] = {}
        for name, folder in _parse_pairs(beside or [], "--beside"):
            compared.setdefault(name, []).append(load_artifact(folder))
        ood_images = synthetic_images(fashion.test.images_B.numpy()) | _read_ood_images(ood or [])
        steps = (
            1 + sum(map(len, compared.values())) + len(ood_images) + len(ANGLES) + len(CORRUPTIONS) * len(SEVERITIES)
        )
        evaluation = evaluate_artifact(
            Evaluator(loaded, fashion, samples=samples, seed=seed, steps=steps), compared, ood_images
        )
        if out is not None:
            write_atomically(out, as_json(evaluation.figures))
        if report is not None:
            write_report(report, evaluation)
    except (DataError, OSError, TypeError, ValueError) as error:
        exit_with_error(str(error))
    for table in all_tables(evaluation.figures):
        console.print(table.as_rich())
    if report is not None:
        console.print(f"model card: {report / 'index.html'}")


def _read_ood_images(arguments: Sequence[str]) -> dict[str, Array]:
    """Read or download the named images; report failed downloads and omit them."""
    images = {}
    for name, path in _parse_pairs([one for one in arguments if one not in DOWNLOADS], "--ood"):
        images[name] = read_images(Path(path))
    for name in DOWNLOADS:
        if name in arguments:
            try:
                images[name] = download_images(name)
            except DataError as error:
                error_console.print(f"omitted: {error}", style="yellow")
    return images


def _parse_pairs(arguments: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for one in arguments:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise ValueError(f"{option}: expected NAME=PATH, got {one}")
        pairs.append((name, path))
    return pairs


if __name__ == "__main__":
    app()
