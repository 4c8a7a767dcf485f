"""A model card: figures as JSON, and a page with tables and pictures."""

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
from training.sheets import Sheet
from training.shifts import ANGLES, SEVERITIES, turned

Array = np.ndarray

PAGE, FIGURES = "index.html", "figures.json"
_LEAST_SURE = 24
_TURNED = 0  # the number of the test image that is turned
_MASKS = 100  # under which it is seen
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}"
    "td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ccc}.name{text-align:left}img{max-width:100%}"
)


@dataclass(frozen=True)
class Evaluation:
    """What was found out about a model.

    Attributes:
        artifact: that was evaluated.
        test: labelled images.
        samples: masks of the Monte-Carlo prediction.
        estimates: of the test images, by name of the model: "" for the artifact, others beside.
        scored: novelty scores by name of the images, the test images first, and score.
        figures: what was measured, for JSON.
        sheets: the same as tables.
    """

    artifact: Artifact
    test: Images
    samples: int
    estimates: Mapping[str, Estimates]
    scored: Mapping[str, Mapping[str, Array]]
    figures: Mapping[str, Any]
    sheets: list[Sheet]


def write_report(folder: Path, found: Evaluation) -> None:
    """Write page, figures and pictures into a folder, which is made if missing; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(found)
    for name, (_, picture) in pictures.items():
        write_atomically(folder / f"{name}.png", picture)
    write_atomically(folder / FIGURES, as_json(found.figures))
    captions = {f"{name}.png": caption for name, (caption, _) in pictures.items()}
    write_atomically(folder / PAGE, _page(found, captions).encode())


def as_json(figures: Mapping[str, Any]) -> bytes:
    """Figures as a JSON file."""
    return (json.dumps(figures, indent=2) + "\n").encode()


def _pictures(found: Evaluation) -> dict[str, tuple[str, bytes]]:
    """Caption and picture by name."""
    rotation = {int(angle): row for angle, row in found.figures["rotation"].items()}
    shown = {
        "accuracy, eval": ("eval", "accuracy"),
        "accuracy, mc": ("mc", "accuracy"),
        "entropy (nats)": ("mc", "entropy"),
    }
    turns = {name: {angle: row[mode][key] for angle, row in rotation.items()} for name, (mode, key) in shown.items()}
    if all("decision" in row for row in rotation.values()):
        turns["answered"] = {angle: row["decision"]["answered"] for angle, row in rotation.items()}
    return {
        **_confidences(found),
        "samples": ("How many masks it takes", _against_samples(found.figures)),
        "rotation": ("Test images that are turned", plots.lines(turns, x="degrees", y="")),
        "rotation-one": (
            f"The test image {_TURNED}, turned: class probabilities under each of {_MASKS} masks",
            _turned_picture(found),
        ),
        "corruptions": (
            "Corruptions by severity, mc",
            plots.heatmaps(
                {
                    title: {
                        name: [row["mc"][key] for row in rows.values()]
                        for name, rows in found.figures["corruptions"].items()
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
                f"{score}, of clothing and of what is none",
                plots.histograms({name: by_score[score] for name, by_score in found.scored.items()}, label=score),
            )
            for score in next(iter(found.scored.values()))
        },
    }


def _confidences(found: Evaluation) -> dict[str, tuple[str, bytes]]:
    classes, labels_B = found.artifact.classes, found.test.labels_B.numpy()
    raw, calibrated, beside = {}, {}, {}
    for model, estimates in found.estimates.items():
        for mode, key in {"eval": ("eval", 0), "mc": ("masks", found.samples), "moments": ("moments", 0)}.items():
            probs_BC = estimates[key]["probs_BC"]
            right_B = probs_BC.argmax(axis=1) == labels_B
            if model:
                beside[f"{model}: {mode}"] = probs_BC.max(axis=1), right_B
                continue
            raw[mode] = probs_BC.max(axis=1), right_B
            calibration = find_calibration(found.artifact.calibrations, *key)
            if calibration is not None:
                calibrated[f"{mode}, calibrated"] = calibration.probabilities(probs_BC).max(axis=1), right_B
    probs_BC = found.estimates[""]["masks", found.samples]["probs_BC"]
    least_sure = np.argsort(-stats.entropy(probs_BC, axis=1))[:_LEAST_SURE]
    titles = [f"{classes[labels_B[b]]}?\n{classes[probs_BC[b].argmax()]} {probs_BC[b].max():.2f}" for b in least_sure]
    errors = {name: row["error"] for name, row in found.figures["classes"].items()}
    return {
        "reliability": ("Is the confidence right?", plots.reliability(raw | calibrated)),
        "risk-coverage": ("What abstaining buys", plots.risk_coverage(raw | beside)),
        "classes": ("Error by class, over masks", plots.bars(errors, label="wrong")),
        "least-sure": (
            "What it is least sure of: the true class, what is said, how confidently",
            plots.gallery(found.test.images_B.numpy()[least_sure], titles),
        ),
    }


def _against_samples(figures: Mapping[str, Any]) -> bytes:
    by_count = {int(count): row for count, row in figures["masks"].items()}
    curves = {}
    for title, place in {"": lambda row: row, ", calibrated": lambda row: row.get("calibrated")}.items():
        masks = {count: place(row)["nll"] for count, row in by_count.items() if place(row)}
        if masks:
            curves[f"masks{title}"] = masks
        for mode in ("eval", "moments"):
            if place(figures[mode]):
                curves[f"{mode}{title}"] = dict.fromkeys(by_count, place(figures[mode])["nll"])
    return plots.lines(curves, x="masks", y="NLL (nats)", log=True)


def _turned_picture(found: Evaluation) -> bytes:
    one, angles = found.test[_TURNED : _TURNED + 1], ANGLES[:12]
    pictures = [turned(one, angle) for angle in angles]
    mc = MonteCarloDropout(found.artifact.network)
    probs_STC = np.stack(
        [mc.sample(picture.inputs_B, samples=_MASKS, seed=0)[:, 0].numpy() for picture in pictures], axis=1
    )
    images_THW = np.concatenate([picture.images_B.numpy() for picture in pictures])
    return plots.turned_picture(images_THW, probs_STC, angles=angles, classes=found.artifact.classes)


def _page(found: Evaluation, captions: Mapping[str, str]) -> str:
    card = found.artifact.card
    facts = {
        "model": card["architecture"], "weights": found.artifact.sha256, "recipe": card.get("recipe"),
        "data": card.get("data", {}).get("name"), "split": card.get("data", {}).get("split"),
        "made by": card.get("command"), "versions": card.get("versions"),
    }  # fmt: skip
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in facts.items()]
    about = Sheet("What it is", ["", ""], rows, names=2)
    promised = "" if found.artifact.calibrations else "<p>This model is not calibrated.</p>"
    pictures = [
        f'<h2>{html.escape(caption)}</h2><img src="{name}" alt="{html.escape(caption)}">'
        for name, caption in captions.items()
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en">',
            f'<meta charset="utf-8"><title>Model card</title><style>{_STYLE}</style>',
            f'<h1>Model card</h1><p>All figures are in <a href="{FIGURES}">{FIGURES}</a> too.</p>',
            about.as_html(),
            promised,
            *pictures[:2],
            *(sheet.as_html() for sheet in found.sheets),
            *pictures[2:],
            "<p>Images: Fashion-MNIST, (c) 2017 Zalando SE, MIT License.</p>",
            "</html>",
            "",
        ]
    )
