"""What a card says, in words. A card is written by anybody: an entry that is missing or of another kind is left out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from model.card_page.markup import Table

Card = Mapping[str, Any]

_MODES = {"eval": "without dropout", "mc": "masks", "moments": "all masks (moment propagation)"}
_COVERAGE, _RISK = "0.9", "0.05"  # of the headline figures; the defaults of the service
_SET_METHODS = ("lac", "mondrian")  # of the coverage by class
_RATES = (0.01, 0.05)  # of false alarms of the novelty score
_LARGEST = 1e15  # number that is shown
_SHOWN_CLASSES = 12
_DEEPEST = 2  # entry in an entry that is shown


def look_up(card: object, *path: str) -> Any:
    """Follow names into an entry; None if there is no such entry."""
    for name in path:
        card = card.get(name) if isinstance(card, Mapping) else None
    return card


def number(card: object, *path: str) -> float | None:
    """Look a number up; None if there is none."""
    found = look_up(card, *path)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if is_number and abs(found) < _LARGEST else None


def text(card: object, *path: str) -> str:
    """Look a text up; empty if there is none."""
    found = look_up(card, *path)
    return found if isinstance(found, str) else ""


def percent(share: float | None) -> str:
    """0.3954 -> "39.5 %"; values that would round to 0 or 100 % get "<" or ">"."""
    if share is None:
        return ""
    if 0.9995 < share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def decimal(value: float | None, digits: int = 4) -> str:
    """Format a number; None is empty."""
    return "" if value is None else f"{value:.{digits}f}"


def in_words(value: object, depth: int = 0) -> str:
    """Write an entry of a card without JSON: names and values, separated by commas; empty for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return "" if isinstance(value, float) and not math.isfinite(value) else str(value)
    if depth == _DEEPEST:
        return ""
    if isinstance(value, Mapping):
        parts = ((str(name).replace("_", " "), in_words(part, depth + 1)) for name, part in value.items())
        return ", ".join(f"{name} {part}" for name, part in parts if part)
    if isinstance(value, Sequence):
        return ", ".join(part for part in (in_words(one, depth + 1) for one in value) if part)
    return ""


def is_adopted(card: Card) -> bool:
    """Whether somebody else trained the network."""
    return text(card, "recipe", "name") == "adopted"


def intended_use(card: Card) -> list[str]:
    """Say what the network is for, and what not."""
    names = [str(name) for name in card["classes"]]
    shown = ", ".join(names[:_SHOWN_CLASSES])
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return [
        text(card, "intended_use")
        or "Classifies images like those that it was calibrated and tested with. No purpose was stated.",
        f"Chooses one of {len(names)} classes: {shown}{more}.",
        "Not for other kinds of images or other classes. Where it abstains, a person should decide.",
    ]


def training_data(card: Card) -> str:
    """Say which images the network was trained and calibrated with."""
    train, calibration = _count(card, "train"), _count(card, "calibration")
    if is_adopted(card):
        return (
            "Training images: not known here, as somebody else trained the network. Calibrated with "
            f"{calibration or 'labelled'} images."
        )
    parts = [f"{train} images to train" if train else "", f"{calibration} others to calibrate" if calibration else ""]
    counts = ", ".join(filter(None, parts))
    name = text(card, "data", "name") or "The card doesn't name the data"
    return f"{name}: {counts}." if counts else f"{name}."


def evaluation_data(card: Card) -> str:
    """Say which images the network was tested with."""
    test = _count(card, "test")
    if is_adopted(card):
        return (
            f"Tested with {test or 'other'} images, drawn at random from the same labelled images as those that it was "
            "calibrated with. The figures hold for images like these."
        )
    return f"Tested with {test} images of its test set." if test else "Tested with its test set."


def headline(card: Card) -> dict[str, tuple[str, str]]:
    """Choose the headline figures, of the calibrated mean over masks: value and explanation by name."""
    masks = look_up(card, "metrics", "test", "mc")
    calibrated = look_up(masks, "calibrated")
    best = calibrated if isinstance(calibrated, Mapping) else masks
    sets, answers = look_up(calibrated, "prediction_sets", "lac", _COVERAGE), look_up(calibrated, "max_risk", _RISK)
    size, error = decimal(number(sets, "size"), 2), percent(number(answers, "error"))
    chosen = {
        "Accuracy": (percent(number(best, "accuracy")), "of the test images are classified correctly"),
        "NLL": (decimal(number(best, "nll"), 3), "nats; lower is better"),
        "ECE": (percent(number(best, "ece")), "mean difference between confidence and accuracy"),
        "90 % prediction sets": (
            percent(number(sets, "covered")),
            f"contain the true class; {size} classes in a set on average",
        ),
        "Answered at 5 % risk": (
            percent(number(answers, "answered")),
            f"of the images; {error} of the answers wrong",
        ),
    }
    return {name: entry for name, entry in chosen.items() if entry[0]}


def facts(card: Card) -> Table:
    """Tabulate what the network is and how it was made."""
    sides = look_up(card, "graph", "image") or look_up(card, "architecture", "image")
    size = " x ".join(in_words(side) for side in sides) if isinstance(sides, Sequence) else ""
    sites = look_up(card, "graph", "dropout") or ()
    places = ", ".join(f"{text(site, 'name') or 'the network itself'}: p {in_words(site['p'])}" for site in sites)
    members = number(card, "graph", "members")
    file = "weights" if "weights" in card and not members else "graph"
    costs = ", ".join(
        f"{decimal(number(card, 'cost', mode), 1)} {'in eval mode' if mode == 'eval' else f'under {mode} masks'}"
        for mode in (look_up(card, "cost") or ())
    )
    entries = {
        "classes": in_words(card["classes"]),
        "input": f"{size} pixels" if size else "",
        "layers": in_words(look_up(card, "architecture", "hidden")),
        "dropout": places or in_words(look_up(card, "architecture", "dropout")),
        "inserted dropout": in_words(card.get("injected_dropout")),
        "networks": f"{members:g}, whose predictions are averaged; masks are divided among them" if members else "",
        "cost": f"time for one image in times of one network: {costs}" if members and costs else "",
        file: f"sha256 {text(card, file, 'sha256')}",
        "training": "by somebody else" if is_adopted(card) else in_words(card.get("recipe")),
        "command": text(card, "command"),
        "versions": in_words(card.get("versions")),
    }
    return Table("Network", [], [[name, value] for name, value in entries.items() if value], text_columns=2)


def score_table(card: Card) -> Table:
    """Tabulate accuracy and calibration by mode, with and without calibration."""
    rows = []
    for mode, label in _MODES.items():
        found = look_up(card, "metrics", "test", mode)
        count = number(found, "samples")
        name = f"{count:g} masks" if count else label
        for row, shown in ((found, name), (look_up(found, "calibrated"), f"{name}, calibrated")):
            if number(row, "accuracy") is not None:
                scores = [decimal(number(row, score)) for score in ("nll", "ece")]
                rows.append([shown, percent(number(row, "accuracy")), *scores])
    return Table("Accuracy and calibration", ["prediction", "accuracy", "NLL", "ECE"], rows)


def set_table(card: Card) -> Table:
    """Tabulate the coverage of prediction sets."""
    rows = [
        [percent(_ratio(requested)), percent(number(found, "covered")), decimal(number(found, "size"), 2)]
        for requested, found in _entries(card, "prediction_sets", "lac")
    ]
    return Table("Prediction sets", ["requested coverage", "measured coverage", "classes in a set"], rows)


def class_table(card: Card) -> Table:
    """Tabulate the coverage of prediction sets by class, of many classes the least covered."""
    found = look_up(card, "metrics", "classes")
    sets = {
        str(name): [look_up(row, "prediction_sets", method, _COVERAGE) for method in _SET_METHODS]
        for name, row in (found.items() if isinstance(found, Mapping) else ())
    }
    note = "lac covers the requested share of all images, mondrian that share of the images of each class."
    chosen = list(sets)
    if len(sets) > _SHOWN_CLASSES:
        chosen = sorted(sets, key=lambda name: number(sets[name][0], "covered") or 0.0)[:_SHOWN_CLASSES]
        note += f" These are the {_SHOWN_CLASSES} classes that lac covers least; the card has all {len(sets):,}."
    rows = [
        [
            name,
            *(
                cell
                for one in sets[name]
                for cell in (percent(number(one, "covered")), decimal(number(one, "size"), 2))
            ),
        ]
        for name in chosen
    ]
    columns = [column for method in _SET_METHODS for column in (f"{method}: coverage", "classes in a set")]
    title = f"Prediction sets of {100 * float(_COVERAGE):g} % by class"
    return Table(title, ["class", *columns], [row for row in rows if any(row[1:])], note)


def answer_table(card: Card) -> Table:
    """Tabulate the effect of abstention."""
    rows = [
        [percent(_ratio(maximum)), percent(number(found, "answered")), percent(number(found, "error"))]
        for maximum, found in _entries(card, "max_risk")
        if number(found, "answered")  # nothing is answered where there is no guarantee
    ]
    return Table("Abstention", ["maximum error rate", "answered", "measured error rate"], rows)


def guarantee_table(card: Card) -> Table:
    """Tabulate the guarantees that were tested."""
    found = look_up(card, "guarantees", "tested")
    rows = [
        [text(one, "guarantee"), text(one, "found"), in_words(look_up(one, "holds"))]
        for one in (found if isinstance(found, list) else ())
    ]
    note = (
        "A guarantee of coverage holds unless fewer images are covered than in 97.5 % of tests of this size; one of "
        "errors, unless more answers are wrong than in 97.5 %. Both are averages over all classes, with sets of the "
        "method lac."
    )
    return Table("Guarantees on the test images", ["guarantee", "found", "holds"], rows, note, text_columns=2)


def detection_table(card: Card) -> Table:
    """Tabulate how well the novelty score finds images of other kinds."""
    found = look_up(card, "metrics", "ood")
    rows = [
        [str(name), in_words(look_up(row, "images")), decimal(number(row, "auroc"), 3), *(
            percent(number(row, f"flagged at {rate}")) for rate in _RATES
        )]
        for name, row in (found.items() if isinstance(found, Mapping) else ())
    ]  # fmt: skip
    columns = ["out-of-distribution images", "number", "AUROC", *(f"flagged at {100 * rate:g} %" for rate in _RATES)]
    note = "Flagged at a false-alarm rate, the share of images like the calibration images that may be flagged."
    return Table("Novelty score", columns, rows, note)


def pose_table(card: Card) -> Table:
    """Tabulate the variations that the novelty score takes for ordinary."""
    found = look_up(card, "novelty", "poses", "ordinary")
    rows = [
        [str(name), " to ".join(map(str, limits)) if isinstance(limits, list) else in_words(limits)]
        for name, limits in (found.items() if isinstance(found, Mapping) else ())
    ]
    note = (
        "Images that are varied further are unlike those of the training. The novelty score learned to find images "
        "that are turned, moved, reduced or covered in part; others it may not find."
    )
    return Table("Ordinary variations", ["variation", "up to"], rows, note, text_columns=2)


# Of the quantitative analyses.
TABLES = (score_table, set_table, class_table, answer_table, guarantee_table, detection_table, pose_table)


def missing_guarantees(card: Card) -> list[str]:
    """Name the guarantees that can't be given, with the reason."""
    found = look_up(card, "guarantees", "missing")
    return [f"No guarantee for {line}." for line in (found if isinstance(found, list) else ()) if isinstance(line, str)]


def _count(card: Card, part: str) -> str:
    count = number(card, "data", "split", part)
    return "" if not count else f"{count:,.0f}"


def _entries(card: Card, *path: str) -> list[tuple[str, Any]]:
    found = look_up(card, "metrics", "test", "mc", "calibrated", *path)
    return list(found.items()) if isinstance(found, Mapping) else []


def _ratio(name: str) -> float | None:
    try:
        return number({"": float(name)}, "")
    except ValueError:
        return None
