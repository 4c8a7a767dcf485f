"""Text and pictures of the studies, made from the table alone."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.artifact import write_atomically
from training.studies.study import Findings, Plan, Results, Study
from training.studies.table import Table

_WIDTH = 120
PAGE, FOLDER, RESULTS = "studies.md", "studies", "results.csv"


def find_all(studies: Sequence[Study], plan: Plan, table: Table) -> dict[str, Findings]:
    """Read what each study shows, by name; studies that the table doesn't hold whole are left out."""
    return {study.name: study.find(Results(study, plan, table)) for study in studies if is_whole(study, plan, table)}


def is_whole(study: Study, plan: Plan, table: Table) -> bool:
    """Whether a table has all of a study's cells."""
    return all(study.cell(variant, seed, plan) in table for variant in study.variants for seed in range(plan.seeds))


def write(folder: Path, page: str, findings: Mapping[str, Findings]) -> None:
    """Write page and pictures, each file whole or not at all."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for found in findings.values():
        for name, (_, picture) in found.pictures.items():
            write_atomically(folder / FOLDER / f"{name}.png", picture)
    write_atomically(folder / PAGE, page.encode())


def as_page(studies: Sequence[Study], findings: Mapping[str, Findings], plan: Plan, table: Table) -> str:
    """Write up what was found, in Markdown."""
    shown = [study for study in studies if study.name in findings]
    names = ["all"] if len(shown) == len(studies) else list(findings)
    return (
        "\n\n".join(
            [_head(shown, names, plan, table), *(_section(study, findings[study.name], plan) for study in shown)]
        )
        + "\n"
    )


def _head(studies: Sequence[Study], names: Sequence[str], plan: Plan, table: Table) -> str:
    recipe, scale = plan.scale.recipe, plan.scale
    minutes = {study.name: _seconds(study, plan, table) / 60 for study in studies}
    listed = [f"- [{study.name}](#{study.name}) ({minutes[study.name]:.0f} min): {study.question}" for study in studies]
    return "\n\n".join(
        [
            "# The chapter's questions, answered by experiments",
            _fill(
                'The exercises of [d2l.ai, "Dropout"](https://d2l.ai/chapter_multilayer-perceptrons/dropout.html), '
                f"tried in {sum(minutes.values()):.0f} core-minutes by"
            ),
            "\n".join(f"    {_command(name, plan)}" for name in names),
            _fill(f"Text, tables and pictures are made from [{RESULTS}]({FOLDER}/{RESULTS}) alone, one number a row."),
            "\n".join(listed),
            _fill(
                "The network is the chapter's (784-256-256-10, ReLU), trained by plain SGD with batches of "
                f"{recipe.batch_size} and learning rate {recipe.learning_rate:g} (where nothing else is said) on "
                f"{scale.train:,} images of Fashion-MNIST from PyTorch's initial weights, and measured on "
                f"{scale.test:,} test images. The course of the learning rate was tried on some of these, so that "
                f"absolute figures may flatter, all alike. Figures are means over {plan.seeds} seeds with 95 % "
                "intervals (Student's t); differences are taken seed by seed, as networks of one seed share initial "
                "weights, batches and random numbers. Where an interval of a difference holds 0, the question is "
                "called open. Intervals are of single figures: of twenty, one may miss. NLL and losses are in nats; "
                "ECE has 15 bins."
            ),
        ]
    )


def _command(name: str, plan: Plan) -> str:
    options = [
        "--quick" if plan.quick else "",
        f"--seeds {plan.seeds}",
        f"--epochs {plan.epochs}" if plan.epochs else "",
    ]
    return " ".join([f"python -m training.studies {name}", *filter(None, options)])


def _section(study: Study, found: Findings, plan: Plan) -> str:
    design = study.design.format(epochs=study.recipe(plan).epochs, passes=plan.scale.passes)
    unknown = [one.text for one in found.claims if one.is_open]
    pictures = [f"![{caption}]({FOLDER}/{name}.png)" for name, (caption, _) in found.pictures.items()]
    return "\n\n".join(
        [
            f"## {study.name}",
            f"**{study.question}**",
            _fill(design),
            *found.tables,
            *pictures,
            _fill(f"**What it shows.** {' '.join(one.text for one in found.claims if not one.is_open)}"),
            *([_fill(f"**What it leaves open.** {'; '.join(_listed(unknown))}.")] if unknown else []),
            _fill(f"**What it can't show.** {study.limits}"),
        ]
    )


def _listed(unknown: Sequence[str]) -> list[str]:
    """Begin the first as a sentence."""
    return [f"{unknown[0][0].upper()}{unknown[0][1:]}", *unknown[1:]]


def _fill(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _seconds(study: Study, plan: Plan, table: Table) -> float:
    return sum(
        row.value
        for variant in study.variants
        for seed in range(plan.seeds)
        for row in table[study.cell(variant, seed, plan)]
        if row.metric == "seconds"
    )
