"""Measure an artifact on the 10,000 test images, and on what is none of them: `python -m training.evaluate`."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from model import Artifact, Calibration, find_calibration, load_artifact
from model.artifact import write_atomically
from model.dropout import MAX_SEED
from training import sheets
from training.calibrate import fit_calibrations
from training.data import DataError, FashionMNIST, Images, load_fashion_mnist, split_three
from training.estimates import Estimates, ensemble, estimate
from training.measure import (
    decisions,
    measure,
    measure_classes,
    measure_decisions,
    measure_one,
    novelty_scores,
    told_apart,
)
from training.ood import DOWNLOADS, built_in, fetch, read_images
from training.report import Evaluation, as_json, write_report
from training.shifts import ANGLES, CORRUPTIONS, SEVERITIES, shifts
from training.terminal import console, errors

Array = np.ndarray

COUNTS = (2, 5, 10, 30, 100, 300)  # of masks, side by side
_SHIFTED = ("accuracy", "nll", "ece", "entropy", "mutual_information")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


class Evaluator:
    """Measures one artifact: predicts images, telling how far it has come, and says what was found."""

    def __init__(self, artifact: Artifact, fashion: FashionMNIST, *, samples: int, seed: int, steps: int) -> None:
        self.artifact, self.fashion, self.samples, self.seed = artifact, fashion, samples, seed
        self._number, self._steps = itertools.count(1), steps

    def estimates(
        self, images: Images, doing: str, *, samples: Sequence[int] | None = None, artifact: Artifact | None = None
    ) -> Estimates:
        """Estimate by the artifact, or by another one."""
        doing = f"[{next(self._number)}/{self._steps}] {doing}"
        if not console.is_terminal:
            console.print(doing)
        return estimate(
            (artifact or self.artifact).network,
            images,
            samples=samples or (self.samples,),
            seed=self.seed,
            console=console,
            doing=doing,
        )

    def measure(
        self, estimates: Estimates, labels_B: Array, calibrations: Sequence[Calibration] | None = None
    ) -> dict[str, Any]:
        """Measure estimates by the artifact's calibrations, or by others."""
        given = self.artifact.calibrations if calibrations is None else calibrations
        return measure(estimates, labels_B, samples=self.samples, seed=self.seed, calibrations=given)

    def beside(self, name: str, members: Sequence[Artifact]) -> tuple[Estimates, dict[str, Any]]:
        """Estimate and measure, on the test images, another model, or several as an ensemble."""
        test = self.fashion.test
        estimates = ensemble([self.estimates(test, name, artifact=member) for member in members])
        calibrations: Sequence[Calibration] = members[0].calibrations
        if len(members) > 1:
            calibrations = self._calibrations_of_ensemble(members)
        return estimates, self.measure(estimates, test.labels_B.numpy(), calibrations)

    def _calibrations_of_ensemble(self, members: Sequence[Artifact]) -> list[Calibration]:
        """Calibrate as each member was, if they were on the same images."""
        counts = {member.card.get("data", {}).get("split", {}).get("calibration", 0) for member in members}
        if len(counts) > 1 or 0 in counts:
            return []
        (count,) = counts
        images = split_three(self.fashion.train, each=count, validate=False).calibration
        return fit_calibrations(
            [member.network for member in members], images, samples=(self.samples,), console=console
        )

    def counted(self, estimates: Estimates, labels_B: Array) -> dict[str, Any]:
        """Measure estimates by number of masks; calibrated only where just that number was."""
        rows = {}
        for (estimator, count), found in estimates.items():
            if estimator == "masks":
                calibration = find_calibration(self.artifact.calibrations, "masks", count)
                rows[str(count)] = measure_one(found, labels_B, calibration=calibration)
        return rows

    def decided(self, estimates: Estimates, scored: Mapping[str, Array], labels_B: Array | None) -> dict[str, float]:
        """Measure what the service would decide; nothing of an artifact that can't decide."""
        decided = decisions(self.artifact, estimates, scored, samples=self.samples)
        return {} if decided is None else measure_decisions(decided, estimates, labels_B, samples=self.samples)

    def shifted(self) -> dict[str, dict[str, Any]]:
        """Measure test images that are turned or corrupted, by kind and degree."""
        found: dict[str, dict[str, Any]] = {}
        for kind, degree, images in shifts(self.fashion.test):
            labels_B = images.labels_B.numpy()
            estimates = self.estimates(images, f"{kind} {degree}")
            row: dict[str, Any] = {}
            for mode, measured in self.measure(estimates, labels_B).items():
                row[mode] = {name: measured[name] for name in _SHIFTED if name in measured}
                if "calibrated" in measured:
                    row[mode]["calibrated"] = {name: measured["calibrated"][name] for name in ("nll", "ece")}
            scored = novelty_scores(self.artifact, images, estimates, samples=self.samples)
            if decided := self.decided(estimates, scored, labels_B):
                row["decision"] = decided
            found.setdefault(kind, {})[degree] = row
        return found


def run(evaluator: Evaluator, beside: Mapping[str, Sequence[Artifact]], outside: Mapping[str, Array]) -> Evaluation:
    """Evaluate an artifact.

    Args:
        evaluator: of the artifact.
        beside: other models by name, several members an ensemble.
        outside: uint8 images (B, 28, 28) that are no clothing, by name.
    """
    test, samples = evaluator.fashion.test, evaluator.samples
    labels_B = test.labels_B.numpy()
    own = evaluator.estimates(test, "test images", samples=sorted({*COUNTS, samples}))
    figures = evaluator.measure(own, labels_B) | {
        "masks": evaluator.counted(own, labels_B),
        "classes": measure_classes(own, labels_B, samples=samples, artifact=evaluator.artifact),
    }
    estimates, figures["beside"] = {"": own}, {}
    for name, members in beside.items():
        estimates[name], figures["beside"][name] = evaluator.beside(name, members)
    scored = {"test images": novelty_scores(evaluator.artifact, test, own, samples=samples)}
    decided = {"test images": evaluator.decided(own, scored["test images"], labels_B)}
    for name, images_BHW in outside.items():
        images = Images(torch.from_numpy(images_BHW.copy()), torch.zeros(len(images_BHW)).long())
        found = evaluator.estimates(images, name)
        scored[name] = novelty_scores(evaluator.artifact, images, found, samples=samples)
        decided[name] = evaluator.decided(found, scored[name], None)
    figures["ood"] = {name: told_apart(scored["test images"], scored[name]) for name in outside}
    if all(decided.values()):
        figures["decisions"] = decided
    shifted = evaluator.shifted()
    figures |= {"rotation": shifted.pop("rotation"), "corruptions": shifted}
    parts: list[Callable[..., list[sheets.Sheet]]] = [sheets.promises, sheets.classes, sheets.outside, sheets.shifted]
    tables = sheets.predictions(figures, f"{len(test):,} test images")
    tables += [sheet for part in parts for sheet in part(figures)]
    return Evaluation(evaluator.artifact, test, samples, estimates, scored, figures, tables)


@app.command()
def main(  # noqa: PLR0913 - one argument an option
    artifact: Annotated[
        Path | None, typer.Argument(help="Folder of the artifact.", show_default="the embedded one")
    ] = None,
    *,
    samples: Annotated[int, typer.Option(min=2, help="Dropout masks to average.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the masks.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of Fashion-MNIST.", show_default="$MCD_DATA_DIR, or found")
    ] = None,
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
        others: dict[str, list[Artifact]] = {}
        for name, folder in _named(beside or [], "--beside"):
            others.setdefault(name, []).append(load_artifact(folder))
        outside = built_in(fashion.test.images_B.numpy()) | _outside(ood or [])
        steps = 1 + sum(map(len, others.values())) + len(outside) + len(ANGLES) + len(CORRUPTIONS) * len(SEVERITIES)
        found = run(Evaluator(loaded, fashion, samples=samples, seed=seed, steps=steps), others, outside)
        if out is not None:
            write_atomically(out, as_json(found.figures))
        if report is not None:
            write_report(report, found)
    except (DataError, OSError, TypeError, ValueError) as error:
        errors.print(f"error: {error}", style="bold red")
        raise typer.Exit(1) from error
    for sheet in found.sheets:
        console.print(sheet.for_terminal())
    if report is not None:
        console.print(f"model card: {report / 'index.html'}")


def _outside(given: Sequence[str]) -> dict[str, Array]:
    """Read what is named; of what can't be downloaded, say so and go without."""
    found = {}
    for name, path in _named([one for one in given if one not in DOWNLOADS], "--ood"):
        found[name] = read_images(Path(path))
    for name in DOWNLOADS:
        if name in given:
            try:
                found[name] = fetch(name)
            except DataError as error:
                errors.print(f"left out: {error}", style="yellow")
    return found


def _named(given: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for one in given:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise ValueError(f"{option}: expected NAME=PATH, got {one}")
        pairs.append((name, path))
    return pairs


if __name__ == "__main__":
    app()
