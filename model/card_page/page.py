"""The layout of the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.card_page import contents
from model.card_page.markup import Block, bullets, figures, folded, paragraph, strip

STYLE = (Path(__file__).parent / "style.css").read_text()

_METRICS = (
    "Accuracy: the share of correct predictions.",
    "NLL: negative log-likelihood of the true class, in nats. Lower is better.",
    "ECE: expected calibration error, the mean difference between confidence and accuracy in 15 bins. Lower is better.",
    "Coverage: the share of images whose prediction set contains the true class, and the mean number of classes in it.",
    "Abstention: the share of images that are answered if at most a given share of the answers may be wrong.",
)
_FACTORS = (
    "The class: coverage and error rates are averages over all classes, and differ between them.",
    "The image: light, sharpness, rotation, crop and background.",
    "Images that differ from the calibration images get worse answers, and the confidence doesn't always show it.",
)
_CAVEATS = (
    "Calibrated probabilities, prediction sets and abstention hold for images like the calibration images only.",
    "They hold on average over such images, not for each class; prediction sets of the method mondrian do.",
    "The novelty score, if there is one, does not flag every image of another kind.",
    "Measure the figures again with labelled images of your own before you rely on them.",
)
_DROPOUT = "Monte Carlo dropout shows the uncertainty that dropout was trained to express, not all uncertainty."
_INSERTED = (
    "Dropout was inserted after training: the network has not learned to work with it, and the spread over masks shows "
    "less than in a network that was trained with dropout."
)
_INDEPENDENCE = "No test image was used to calibrate. The figures hold only if none was used to train either."
_FAILURES = "failures.png"  # beside the page
_NO_FIGURES = "No figures are stored with this network."
_ETHICS = (
    "Not assessed for this network. If its images show people or things that belong to people, measure the errors for "
    "each group that they may hurt, before it is used."
)


def card_page(card: Mapping[str, Any], *, head: str, header: str = "", analyses: Sequence[Block] = ()) -> str:
    """Make the page.

    Args:
        card: the contents of card.json of an artifact that was loaded.
        head: HTML for the head: the style sheet.
        header: HTML below the title: links.
        analyses: further tables and plots for the quantitative analyses.

    Returns:
        An HTML document without script and without inline style, but for what the head has.
    """
    training, evaluation = contents.training_data(card), contents.evaluation_data(card)
    summary = (
        f'<div class="columns"><section><h2>Intended use</h2>{_paragraphs(contents.intended_use(card))}</section>'
        f"<section><h2>Data</h2>{_paragraphs([training, evaluation])}</section></div>"
        f"<section><h2>Figures</h2>{_headline(card)}</section>"
        f"<section><h2>Known failures</h2>{_failures(card)}</section>"
    )
    details = "".join(folded(title, content) for title, content in _details(card, analyses).items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>Model card</title>\n'
        f"{head}\n</head>\n<body>\n<header><h1>Model card</h1>{header}</header>\n<main>\n{summary}\n"
        f'<div id="details">{details}</div>\n</main>\n</body>\n</html>\n'
    )


def _details(card: Mapping[str, Any], analyses: Sequence[Block]) -> dict[str, str]:
    """Fill the sections of Mitchell et al. 2019 (arXiv:1810.03993)."""
    own = [make(card) for make in contents.TABLES]
    return {
        "Model details": contents.facts(card).as_html(),
        "Intended use": bullets(contents.intended_use(card)),
        "Factors": bullets(_FACTORS),
        "Metrics": bullets(_METRICS),
        "Evaluation data": _paragraphs([contents.evaluation_data(card), _INDEPENDENCE]),
        "Training data": paragraph(contents.training_data(card)),
        "Quantitative analyses": _blocks([*(table for table in own if table.rows), *analyses]),
        "Ethical considerations": paragraph(contents.text(card, "ethical_considerations") or _ETHICS),
        "Caveats and recommendations": bullets([*_caveats(card), *contents.missing_guarantees(card)]),
    }


def _caveats(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the general limits; a network that was trained without dropout has one more."""
    return (_INSERTED, *_CAVEATS) if "injected_dropout" in card else (_DROPOUT, *_CAVEATS)


def _blocks(blocks: Sequence[Block]) -> str:
    return "\n".join(block.as_html() for block in blocks) or paragraph(_NO_FIGURES)


def _headline(card: Mapping[str, Any]) -> str:
    found = contents.headline(card)
    if not found:
        return paragraph(_NO_FIGURES)
    is_calibrated = contents.look_up(card, "metrics", "test", "mc", "calibrated") is not None
    note = "calibrated probabilities" if is_calibrated else "probabilities, which are not calibrated"
    return figures(found) + paragraph(f"Measured on test images, with {note}: the mean over masks.")


def _failures(card: Mapping[str, Any]) -> str:
    """Show the failures in their order; their pictures are side by side in one file."""
    if "failures" not in card:
        return paragraph("None are recorded with this network. That does not mean that it has none.")
    kinds, parts, first = card["failures"]["kinds"], [], 0
    count = sum(len(kind["images"]) for kind in kinds)
    for kind in kinds:
        shown = strip(_FAILURES, kind["images"], first, count) if kind["images"] else ""
        parts.append(f"<section>{paragraph(kind['text'])}{shown}</section>")
        first += len(kind["images"])
    return f'<div class="failures">{"".join(parts)}</div>'


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(paragraph(one) for one in texts)
