"""A model card in HTML: figures and pictures of one evaluation."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from model import Artifact, find_calibration
from model.artifact import write_atomically
from training.calibrate import Estimates
from training.data import Images
from training.plots import bars, gallery, histograms, reliability, risk_coverage

Array = np.ndarray

_LEAST_SURE = 24
_STYLE = "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
_STYLE += "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ccc}"
_STYLE += "td:first-child,th:first-child{text-align:left}img{max-width:100%}"


def write_report(
    folder: Path,
    artifact: Artifact,
    test: Images,
    estimates: Estimates,
    scored: Mapping[str, Mapping[str, Array]],
    metrics: Mapping[str, Any],
    strange: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Write index.html and its pictures into a folder, each file whole or not at all.

    Args:
        folder: made if missing.
        artifact: that was evaluated.
        test: labelled images.
        estimates: of these.
        scored: novelty scores by name of the images, the test images among them, and score.
        metrics: of the estimates.
        strange: how well scores tell the other images from the test's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(artifact, test, estimates, scored)
    for name, (_, picture) in pictures.items():
        write_atomically(folder / f"{name}.png", picture)
    write_atomically(folder / "index.html", _page(artifact, pictures, metrics, strange).encode())


def _pictures(
    artifact: Artifact, test: Images, estimates: Estimates, scored: Mapping[str, Mapping[str, Array]]
) -> dict[str, tuple[str, bytes]]:
    """Caption and picture by name."""
    labels_B, raw, calibrated = test.labels_B.numpy(), {}, {}
    for (estimator, samples), found in estimates.items():
        name = f"{samples} masks" if samples else estimator
        probs_BC = found["probs_BC"]
        raw[name] = probs_BC.max(axis=1), probs_BC.argmax(axis=1) == labels_B
        calibration = find_calibration(artifact.calibrations, estimator, samples)
        if calibration is not None:
            calibrated[f"{name}, calibrated"] = calibration.probabilities(probs_BC).max(axis=1), raw[name][1]
    (probs_BC,) = [found["probs_BC"] for (estimator, _), found in estimates.items() if estimator == "masks"]
    wrong_B = probs_BC.argmax(axis=1) != labels_B
    least_sure = np.argsort(-stats.entropy(probs_BC, axis=1))[:_LEAST_SURE]
    titles = [
        f"{artifact.classes[labels_B[b]]}?\n{artifact.classes[probs_BC[b].argmax()]} {probs_BC[b].max():.2f}"
        for b in least_sure
    ]
    by_class = {name: float(wrong_B[labels_B == index].mean()) for index, name in enumerate(artifact.classes)}
    pictures = {
        "reliability": ("Is the confidence right?", reliability(raw | calibrated)),
        "risk-coverage": ("What abstaining buys", risk_coverage(raw)),
        "classes": ("Error by class, over masks", bars(by_class, label="wrong")),
    }
    for score in next(iter(scored.values())):
        values = {name: by_score[score] for name, by_score in scored.items()}
        pictures[score.replace(", ", "-").replace(" ", "-")] = (
            f"{score}, of clothing and of what is none",
            histograms(values, label=score),
        )
    pictures["least-sure"] = (
        "What it is least sure of: the true class, what is said, how confidently",
        gallery(test.images_B.numpy()[least_sure], titles),
    )
    return pictures


def _page(
    artifact: Artifact,
    pictures: Mapping[str, tuple[str, bytes]],
    metrics: Mapping[str, Any],
    strange: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> str:
    card = artifact.card
    facts = {
        "model": card["architecture"], "weights": artifact.sha256, "recipe": card.get("recipe"),
        "data": card.get("data", {}).get("name"), "split": card.get("data", {}).get("split"),
        "made by": card.get("command"), "versions": card.get("versions"),
    }  # fmt: skip
    parts = [
        "<h1>Model card</h1>",
        _table(["", ""], [[name, str(value)] for name, value in facts.items()]),
        "<h2>Test images</h2>",
        _score_table(metrics),
        *_promises(metrics),
        "<h2>Images that are no clothing</h2>",
        _table(
            ["images", "score", "AUROC", "AUPR", "FPR95", "flagged"],
            [
                [name, score, *(_number(row.get(key)) for key in ("auroc", "aupr", "fpr95", "flagged"))]
                for name, by_score in strange.items()
                for score, row in by_score.items()
            ],
        ),
    ]
    for name, (caption, _) in pictures.items():
        text = html.escape(caption)
        parts.append(f'<h2>{text}</h2><img src="{name}.png" alt="{text}">')
    parts.append("<p>Images: Fashion-MNIST, (c) 2017 Zalando SE, MIT License.</p>")
    head = f'<meta charset="utf-8"><title>Model card</title><style>{_STYLE}</style>'
    return "\n".join(['<!doctype html><html lang="en">', head, *parts, "</html>", ""])


def _score_table(metrics: Mapping[str, Any]) -> str:
    rows = []
    for mode, row in metrics.items():
        rows.append((mode, row))
        if "calibrated" in row:
            rows.append((f"{mode}, calibrated", row["calibrated"]))
    names = [name for name, value in rows[-1][1].items() if isinstance(value, float)]
    return _table(["", *names], [[mode, *(_number(row.get(name)) for name in names)] for mode, row in rows])


def _promises(metrics: Mapping[str, Any]) -> list[str]:
    calibrated = {mode: row["calibrated"] for mode, row in metrics.items() if "calibrated" in row}
    if not calibrated:
        return ["<p>This model is not calibrated.</p>"]
    sets = [
        [mode, method, coverage, _number(found["covered"]), _number(found["size"])]
        for mode, row in calibrated.items()
        for method, by_coverage in row["prediction_sets"].items()
        for coverage, found in by_coverage.items()
    ]
    answers = [
        [mode, risk, _number(found["error"]), _number(found["answered"])]
        for mode, row in calibrated.items()
        for risk, found in row["max_risk"].items()
    ]
    return [
        "<h2>Prediction sets</h2>",
        _table(["", "method", "coverage asked for", "found", "classes in a set"], sets),
        "<h2>Abstention</h2>",
        _table(["", "risk accepted", "wrong among the answered", "answered"], answers),
    ]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = "".join(
        f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
        for tag, row in (("th", header), *(("td", row) for row in rows))
    )
    return f"<table>{lines}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
