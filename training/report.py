"""Model card of an evaluation: figures as JSON, plots, and the HTML page.

`python -m training.report FOLDER` writes the page again from the figures, after its layout or its words have changed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy import stats

from model import Artifact, find_calibration, load_artifact
from model.artifact import FAILURES, write_atomically
from model.card_page import STYLE, Block, Picture, card_page
from training import plots
from training.data import Images
from training.estimates import Estimates
from training.shifts import ANGLES, SEVERITIES, rotate
from training.tables import MODES, all_tables
from training.terminal import error_console

Array = np.ndarray

PAGE, FIGURES = "index.html", "figures.json"
_UNCERTAIN_IMAGES = 24
_ROTATED_IMAGE = 0  # index of the test image that is rotated
_MASKS = 100  # of the predictions of that image
_PLOTS = {
    "reliability": "Reliability: the share of correct predictions against their confidence",
    "risk-coverage": "Error among the answered images against the share of images that is answered",
    "classes": "Error by class, over masks",
    "least-sure": "Most uncertain test images: true class, predicted class, confidence",
    "samples": "NLL by number of masks",
    "rotation": "Rotated test images",
    "rotation-one": f"Test image {_ROTATED_IMAGE}, rotated: class probabilities under each of {_MASKS} masks",
    "corruptions": "Corruptions by severity, mean over masks",
}
_LICENSE = "Images: Fashion-MNIST, (c) 2017 Zalando SE, MIT License."

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Evaluation:
    """Results of the evaluation of an artifact.

    Attributes:
        artifact: the evaluated artifact.
        test: labelled test images.
        samples: number of masks of the Monte Carlo prediction.
        estimates: predictions of the test images by name of the model: "" for the artifact.
        scores: out-of-distribution scores by name of the images, the test images first, and by name of the score.
        figures: all measurements, for JSON.
    """

    artifact: Artifact
    test: Images
    samples: int
    estimates: Mapping[str, Estimates]
    scores: Mapping[str, Mapping[str, Array]]
    figures: Mapping[str, Any]


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """Write page, figures and pictures to a folder, which is created if missing; each file is written atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in _pictures(evaluation).items():
        write_atomically(folder / f"{name}.png", picture)
    write_atomically(folder / FIGURES, as_json(evaluation.figures))
    write_report_page(folder, evaluation.artifact)


def write_report_page(folder: Path, artifact: Artifact) -> None:
    """Write the page of a folder from its figures, which are of this artifact; the plots must be there."""
    figures = json.loads((folder / FIGURES).read_text())
    modes = {mode: figures[mode] for mode in MODES if mode in figures}
    card = artifact.card | {"metrics": {"test": modes, "classes": figures["classes"]}}
    captions = _PLOTS | {_file_name(score): _describe_score(score) for score in next(iter(figures["ood"].values()))}
    pictures = [Picture(f"{name}.png", caption) for name, caption in captions.items()]
    note = f'<p>All figures are also in <a href="{FIGURES}">{FIGURES}</a>. {_LICENSE}</p>'
    write_page(folder, card, artifact.failures, note=note, analyses=[*all_tables(figures), *pictures])


def write_page(
    folder: Path, card: Mapping[str, Any], failures: bytes | None, *, note: str, analyses: Sequence[Block]
) -> None:
    """Write a model card that needs no server: the page with its style sheet, and the pictures of known failures.

    Args:
        folder: for the page; created if missing. The plots must be in it.
        card: the contents of card.json.
        failures: pictures of the known failures that the card names; None if it names none.
        note: HTML below the title.
        analyses: tables and plots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if failures is not None:
        write_atomically(folder / FAILURES, failures)
    else:
        (folder / FAILURES).unlink(missing_ok=True)  # of an earlier card
    page = card_page(card, head=f"<style>\n{STYLE}</style>", header=note, analyses=analyses)
    write_atomically(folder / PAGE, page.encode(errors="replace"))


def as_json(figures: Mapping[str, Any]) -> bytes:
    """Encode figures as a JSON file."""
    return (json.dumps(figures, indent=2) + "\n").encode()


def _pictures(evaluation: Evaluation) -> dict[str, bytes]:
    """Plot all pictures: PNG file by name, those of `_PLOTS` and one for each score."""
    rotation = {int(angle): row for angle, row in evaluation.figures["rotation"].items()}
    plotted = {
        "accuracy, eval": ("eval", "accuracy"),
        "accuracy, mc": ("mc", "accuracy"),
        "entropy (nats)": ("mc", "entropy"),
    }
    rotation_curves = {
        name: {angle: row[mode][key] for angle, row in rotation.items()} for name, (mode, key) in plotted.items()
    }
    if all("decision" in row for row in rotation.values()):
        rotation_curves["answered"] = {angle: row["decision"]["answered"] for angle, row in rotation.items()}
    return {
        **_confidence_pictures(evaluation),
        "samples": _mask_count_picture(evaluation.figures),
        "rotation": plots.lines(rotation_curves, x="degrees", y=""),
        "rotation-one": _rotation_picture(evaluation),
        "corruptions": plots.heatmaps(
            {
                title: {
                    name: [row["mc"][key] for row in rows.values()]
                    for name, rows in evaluation.figures["corruptions"].items()
                }
                for title, key in {
                    "accuracy": "accuracy",
                    "ECE": "ece",
                    "mutual information (nats)": "mutual_information",
                }.items()
            },
            columns=[str(severity) for severity in SEVERITIES],
            x="severity",
        ),
        **{
            _file_name(score): plots.histograms(
                {name: by_score[score] for name, by_score in evaluation.scores.items()}, label=score
            )
            for score in next(iter(evaluation.scores.values()))
        },
    }


def _file_name(score: str) -> str:
    return score.replace(", ", "-").replace(" ", "-")


def _describe_score(score: str) -> str:
    return f"{score[0].upper()}{score[1:]} of test images and out-of-distribution images"


def _confidence_pictures(evaluation: Evaluation) -> dict[str, bytes]:
    classes, labels_B = evaluation.artifact.classes, evaluation.test.labels_B.numpy()
    uncalibrated, calibrated, compared = {}, {}, {}
    for model, estimates in evaluation.estimates.items():
        for mode, key in {"eval": ("eval", 0), "mc": ("masks", evaluation.samples), "moments": ("moments", 0)}.items():
            if key not in estimates:
                continue
            probs_BC = estimates[key]["probs_BC"]
            right_B = probs_BC.argmax(axis=1) == labels_B
            if model:
                compared[f"{model}: {mode}"] = probs_BC.max(axis=1), right_B
                continue
            uncalibrated[mode] = probs_BC.max(axis=1), right_B
            calibration = find_calibration(evaluation.artifact.calibrations, *key)
            if calibration is not None:
                calibrated[f"{mode}, calibrated"] = calibration.probabilities(probs_BC).max(axis=1), right_B
    probs_BC = evaluation.estimates[""]["masks", evaluation.samples]["probs_BC"]
    most_uncertain = np.argsort(-stats.entropy(probs_BC, axis=1))[:_UNCERTAIN_IMAGES]
    titles = [
        f"{classes[labels_B[b]]}?\n{classes[probs_BC[b].argmax()]} {probs_BC[b].max():.2f}" for b in most_uncertain
    ]
    errors = {name: row["error"] for name, row in evaluation.figures["classes"].items()}
    return {
        "reliability": plots.reliability(uncalibrated | calibrated),
        "risk-coverage": plots.risk_coverage(uncalibrated | compared),
        "classes": plots.bars(errors, label="wrong"),
        "least-sure": plots.gallery(evaluation.test.images_B.numpy()[most_uncertain], titles),
    }


def _mask_count_picture(figures: Mapping[str, Any]) -> bytes:
    by_count = {int(count): row for count, row in figures["masks"].items()}
    curves = {}
    for title, select in {"": lambda row: row, ", calibrated": lambda row: row.get("calibrated")}.items():
        masks = {count: select(row)["nll"] for count, row in by_count.items() if select(row)}
        if masks:
            curves[f"masks{title}"] = masks
        for mode in ("eval", "moments"):
            if mode in figures and select(figures[mode]):
                curves[f"{mode}{title}"] = dict.fromkeys(by_count, select(figures[mode])["nll"])
    return plots.lines(curves, x="masks", y="NLL (nats)", log=True)


def _rotation_picture(evaluation: Evaluation) -> bytes:
    one, angles = evaluation.test[_ROTATED_IMAGE : _ROTATED_IMAGE + 1], ANGLES[:12]
    pictures = [rotate(one, angle) for angle in angles]
    engine = evaluation.artifact.engine
    probs_STC = np.stack(
        [engine.sample(picture.inputs_B.numpy(), samples=_MASKS, seed=0)[:, 0] for picture in pictures], axis=1
    )
    images_THW = np.concatenate([picture.images_B.numpy() for picture in pictures])
    return plots.rotation_plot(images_THW, probs_STC, angles=angles, classes=evaluation.artifact.classes)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Folder of a model card, with its figures and plots.")],
    artifact: Annotated[
        Path | None, typer.Argument(help="Folder of its artifact.", show_default="the embedded one")
    ] = None,
) -> None:
    """Write the page of a model card again from its figures."""
    try:
        write_report_page(folder, load_artifact(artifact))
    except (ValueError, OSError) as error:
        error_console.print(f"error: {error}", style="bold red")
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
