"""Model card: figures as JSON, and an HTML page with tables and pictures."""

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from model import Artifact, MonteCarloDropout, find_calibration
from model.artifact import write_atomically
from training import plots
from training.data import Images
from training.estimates import Estimates
from training.shifts import ANGLES, SEVERITIES, rotate
from training.tables import FigureTable

Array = np.ndarray

PAGE, FIGURES = "index.html", "figures.json"
_UNCERTAIN_IMAGES = 24
_ROTATED_IMAGE = 0  # index of the test image that is rotated
_MASKS = 100  # of the predictions of that image
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}"
    "td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ccc}.name{text-align:left}img{max-width:100%}"
)


@dataclass(frozen=True)
class Evaluation:
    """Results of the evaluation of an artifact.

    Attributes:
        artifact: the evaluated artifact.
        test: labelled test images.
        samples: number of masks of the Monte-Carlo prediction.
        estimates: predictions of the test images by name of the model: "" for the artifact.
        scores: out-of-distribution scores by name of the images, the test images first, and by name of the score.
        figures: all measurements, for JSON.
        tables: the measurements as tables.
    """

    artifact: Artifact
    test: Images
    samples: int
    estimates: Mapping[str, Estimates]
    scores: Mapping[str, Mapping[str, Array]]
    figures: Mapping[str, Any]
    tables: list[FigureTable]


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """Write page, figures and pictures to a folder, which is created if missing; each file is written atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(evaluation)
    for name, (_, picture) in pictures.items():
        write_atomically(folder / f"{name}.png", picture)
    write_atomically(folder / FIGURES, as_json(evaluation.figures))
    captions = {f"{name}.png": caption for name, (caption, _) in pictures.items()}
    write_atomically(folder / PAGE, _page(evaluation, captions).encode())


def as_json(figures: Mapping[str, Any]) -> bytes:
    """Encode figures as a JSON file."""
    return (json.dumps(figures, indent=2) + "\n").encode()


def _pictures(evaluation: Evaluation) -> dict[str, tuple[str, bytes]]:
    """Plot all pictures: caption and PNG file by name."""
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
        "samples": ("NLL by number of masks", _mask_count_picture(evaluation.figures)),
        "rotation": ("Rotated test images", plots.lines(rotation_curves, x="degrees", y="")),
        "rotation-one": (
            f"Test image {_ROTATED_IMAGE}, rotated: class probabilities under each of {_MASKS} masks",
            _rotation_picture(evaluation),
        ),
        "corruptions": (
            "Corruptions by severity, mc",
            plots.heatmaps(
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
        ),
        **{
            score.replace(", ", "-").replace(" ", "-"): (
                f"{score} of test images and out-of-distribution images",
                plots.histograms({name: by_score[score] for name, by_score in evaluation.scores.items()}, label=score),
            )
            for score in next(iter(evaluation.scores.values()))
        },
    }


def _confidence_pictures(evaluation: Evaluation) -> dict[str, tuple[str, bytes]]:
    classes, labels_B = evaluation.artifact.classes, evaluation.test.labels_B.numpy()
    uncalibrated, calibrated, compared = {}, {}, {}
    for model, estimates in evaluation.estimates.items():
        for mode, key in {"eval": ("eval", 0), "mc": ("masks", evaluation.samples), "moments": ("moments", 0)}.items():
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
        "reliability": ("Reliability of the confidence", plots.reliability(uncalibrated | calibrated)),
        "risk-coverage": ("Error against the fraction answered", plots.risk_coverage(uncalibrated | compared)),
        "classes": ("Error by class, over masks", plots.bars(errors, label="wrong")),
        "least-sure": (
            "Most uncertain test images: true class, predicted class, confidence",
            plots.gallery(evaluation.test.images_B.numpy()[most_uncertain], titles),
        ),
    }


def _mask_count_picture(figures: Mapping[str, Any]) -> bytes:
    by_count = {int(count): row for count, row in figures["masks"].items()}
    curves = {}
    for title, select in {"": lambda row: row, ", calibrated": lambda row: row.get("calibrated")}.items():
        masks = {count: select(row)["nll"] for count, row in by_count.items() if select(row)}
        if masks:
            curves[f"masks{title}"] = masks
        for mode in ("eval", "moments"):
            if select(figures[mode]):
                curves[f"{mode}{title}"] = dict.fromkeys(by_count, select(figures[mode])["nll"])
    return plots.lines(curves, x="masks", y="NLL (nats)", log=True)


def _rotation_picture(evaluation: Evaluation) -> bytes:
    one, angles = evaluation.test[_ROTATED_IMAGE : _ROTATED_IMAGE + 1], ANGLES[:12]
    pictures = [rotate(one, angle) for angle in angles]
    mc = MonteCarloDropout(evaluation.artifact.network)
    probs_STC = np.stack(
        [mc.sample(picture.inputs_B, samples=_MASKS, seed=0)[:, 0].numpy() for picture in pictures], axis=1
    )
    images_THW = np.concatenate([picture.images_B.numpy() for picture in pictures])
    return plots.rotation_plot(images_THW, probs_STC, angles=angles, classes=evaluation.artifact.classes)


def _page(evaluation: Evaluation, captions: Mapping[str, str]) -> str:
    card = evaluation.artifact.card
    facts = {
        "model": card["architecture"], "weights": evaluation.artifact.sha256, "recipe": card.get("recipe"),
        "data": card.get("data", {}).get("name"), "split": card.get("data", {}).get("split"),
        "made by": card.get("command"), "versions": card.get("versions"),
    }  # fmt: skip
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in facts.items()]
    about = FigureTable("The model", ["", ""], rows, text_columns=2)
    calibration_note = "" if evaluation.artifact.calibrations else "<p>This model is not calibrated.</p>"
    pictures = [
        f'<h2>{html.escape(caption)}</h2><img src="{name}" alt="{html.escape(caption)}">'
        for name, caption in captions.items()
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en">',
            f'<meta charset="utf-8"><title>Model card</title><style>{_STYLE}</style>',
            f'<h1>Model card</h1><p>All figures are also in <a href="{FIGURES}">{FIGURES}</a>.</p>',
            about.as_html(),
            calibration_note,
            *pictures[:2],
            *(table.as_html() for table in evaluation.tables),
            *pictures[2:],
            "<p>Images: Fashion-MNIST, (c) 2017 Zalando SE, MIT License.</p>",
            "</html>",
            "",
        ]
    )
