"""Text and pictures of the studies, made from the table alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from model.artifact import write_atomically
from training.studies.study import Findings, Plan, Results, Study
from training.studies.table import Table

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
    return (
        "\n\n".join([_head(shown, plan, table), *(_section(study, findings[study.name], plan) for study in shown)])
        + "\n"
    )


def _head(studies: Sequence[Study], plan: Plan, table: Table) -> str:
    recipe, scale = plan.scale.recipe, plan.scale
    seconds = {study.name: _seconds(study, plan, table) for study in studies}
    listed = "\n".join(
        f"- [{study.name}](#{study.name}): {study.question} ({seconds[study.name] / 60:.0f} min)" for study in studies
    )
    return f"""# The chapter's questions, answered by experiments

The exercises of [d2l.ai, "Dropout"](https://d2l.ai/chapter_multilayer-perceptrons/dropout.html), tried. Made by
`{_command(plan)}` in {sum(seconds.values()) / 60:.0f} minutes of one core; text, tables and pictures are made from
[{RESULTS}]({FOLDER}/{RESULTS}) alone, one number a row.

{listed}

The network is the chapter's (784-256-256-10, ReLU), trained by plain SGD with batches of {recipe.batch_size} and learning
rate {recipe.learning_rate:g} on {scale.train:,} images of Fashion-MNIST from PyTorch's initial weights, and measured on
{scale.test:,} test images; nothing was chosen by them. Figures are means over {plan.seeds} seeds with 95 % intervals by
Student's t distribution; differences are taken seed by seed, as networks of one seed share initial weights, batches and
random numbers. Where an interval of a difference holds 0, the question is called open. Intervals are of single figures: of
twenty, one may miss. NLL and losses are in nats; ECE has 15 bins."""


def _command(plan: Plan) -> str:
    options = [
        "--quick" if plan.quick else "",
        f"--seeds {plan.seeds}",
        f"--epochs {plan.epochs}" if plan.epochs else "",
    ]
    return " ".join(["python -m training.studies all", *filter(None, options)])


def _section(study: Study, found: Findings, plan: Plan) -> str:
    design = study.design.format(epochs=study.recipe(plan).epochs, passes=plan.scale.passes)
    pictures = [f"![{caption}]({FOLDER}/{name}.png)" for name, (caption, _) in found.pictures.items()]
    return "\n\n".join(
        [
            f"## {study.name}",
            f"**{study.question}**",
            design,
            *found.tables,
            *pictures,
            f"**What it shows.** {' '.join(found.claims)}",
            f"**What it doesn't.** {study.limits}",
        ]
    )


def _seconds(study: Study, plan: Plan, table: Table) -> float:
    return sum(
        row.value
        for variant in study.variants
        for seed in range(plan.seeds)
        for row in table[study.cell(variant, seed, plan)]
        if row.metric == "seconds"
    )
