"""Text and pictures of the studies, generated from the results table alone."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.artifact import write_atomically
from training.studies.study import Findings, Plan, Results, Study
from training.studies.table import ResultsTable

_WIDTH = 120
PAGE, FOLDER, RESULTS = "studies.md", "studies", "results.csv"


def interpret_all(studies: Sequence[Study], plan: Plan, table: ResultsTable) -> dict[str, Findings]:
    """Interpret each study, by name; studies with missing results are omitted."""
    return {
        study.name: study.interpret(Results(study, plan, table)) for study in studies if is_complete(study, plan, table)
    }


def is_complete(study: Study, plan: Plan, table: ResultsTable) -> bool:
    """Whether a table contains all cells of a study."""
    return all(study.cell(variant, seed, plan) in table for variant in study.variants for seed in range(plan.seeds))


def write(folder: Path, page: str, findings: Mapping[str, Findings]) -> None:
    """Write page and pictures; each file is written atomically."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for finding in findings.values():
        for name, (_, picture) in finding.pictures.items():
            write_atomically(folder / FOLDER / f"{name}.png", picture)
    write_atomically(folder / PAGE, page.encode())


def as_page(studies: Sequence[Study], findings: Mapping[str, Findings], plan: Plan, table: ResultsTable) -> str:
    """Format all findings as a Markdown page."""
    included = [study for study in studies if study.name in findings]
    names = ["all"] if len(included) == len(studies) else list(findings)
    return (
        "\n\n".join(
            [_head(included, names, plan, table), *(_section(study, findings[study.name], plan) for study in included)]
        )
        + "\n"
    )


def _head(studies: Sequence[Study], names: Sequence[str], plan: Plan, table: ResultsTable) -> str:
    recipe, scale = plan.scale.recipe, plan.scale
    minutes = {study.name: _seconds(study, plan, table) / 60 for study in studies}
    links = [f"- [{study.name}](#{study.name}) ({minutes[study.name]:.0f} min): {study.question}" for study in studies]
    return "\n\n".join(
        [
            "# The chapter's questions, answered by experiments",
            _wrap(
                'The exercises of [d2l.ai, "Dropout"](https://d2l.ai/chapter_multilayer-perceptrons/dropout.html), '
                f"answered in {sum(minutes.values()):.0f} core-minutes with"
            ),
            "\n".join(f"    {_command(name, plan)}" for name in names),
            _wrap(
                f"Text, tables and pictures are generated from [{RESULTS}]({FOLDER}/{RESULTS}) alone, which has one "
                "number per row."
            ),
            "\n".join(links),
            _wrap(
                "The network is the chapter's (784-256-256-10, ReLU), trained by plain SGD with batches of "
                f"{recipe.batch_size} and learning rate {recipe.learning_rate:g} (unless stated otherwise) on "
                f"{scale.train:,} images of Fashion-MNIST from PyTorch's initial weights, and measured on "
                f"{scale.test:,} test images. The learning rate schedule was chosen on some of these, so that "
                f"absolute figures may be optimistic, equally for all networks. Figures are means over {plan.seeds} "
                "seeds with 95 % intervals (Student's t); differences are paired by seed, as networks of one seed "
                "share initial weights, batches and random numbers. If the interval of a difference contains 0, the "
                "question is called open. Intervals hold for single figures: one of twenty may miss. NLL and losses "
                "are in nats; ECE has 15 bins."
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


def _section(study: Study, finding: Findings, plan: Plan) -> str:
    design = study.design.format(epochs=study.recipe(plan).epochs, passes=plan.scale.passes)
    open_claims = [one.text for one in finding.claims if one.is_open]
    pictures = [f"![{caption}]({FOLDER}/{name}.png)" for name, (caption, _) in finding.pictures.items()]
    return "\n\n".join(
        [
            f"## {study.name}",
            f"**{study.question}**",
            _wrap(design),
            *finding.tables,
            *pictures,
            _wrap(f"**What it shows.** {' '.join(one.text for one in finding.claims if not one.is_open)}"),
            *([_wrap(f"**What it leaves open.** {'; '.join(_capitalize_first(open_claims))}.")] if open_claims else []),
            _wrap(f"**What it can't show.** {study.limits}"),
        ]
    )


def _capitalize_first(open_claims: Sequence[str]) -> list[str]:
    """Capitalize the first clause."""
    return [f"{open_claims[0][0].upper()}{open_claims[0][1:]}", *open_claims[1:]]


def _wrap(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _seconds(study: Study, plan: Plan, table: ResultsTable) -> float:
    return sum(
        row.value
        for variant in study.variants
        for seed in range(plan.seeds)
        for row in table[study.cell(variant, seed, plan)]
        if row.metric == "seconds"
    )
