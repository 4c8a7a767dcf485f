"""The summary of a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from pyarrow import acero, dataset

from service.bulk.output import Output

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MEASURES = ("confidence", "predictive_entropy", "mutual_information", "novelty")
_LEAST_SURE = 24  # number of listed images


def summarize_output(output: Output) -> dict[str, Any]:
    """Summarize all rows: counts, quantiles, and the images with the highest predictive entropy.

    The memory does not grow with the number of rows. Quantiles are approximate (t-digest, Dunning & Ertl 2019,
    arXiv:1902.04023).
    """
    classes: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rows = 0
    least: list[tuple[float, str]] = []
    for batch in output.batches(["id", "label", "error", "abstain_reason", "predictive_entropy"]):
        rows += len(batch)
        classes.update(_counts(batch.column("label")))
        reasons.update(_counts(batch.column("abstain_reason")))
        errors.update(_counts(pc.list_element(pc.split_pattern(batch.column("error"), ":"), 0)))
        entropies = batch.column("predictive_entropy").to_numpy(zero_copy_only=False)
        top = np.argsort(-np.nan_to_num(entropies, nan=-1), kind="stable")[:_LEAST_SURE].tolist()
        candidates = [(float(entropies[row]), batch.column("id")[row].as_py()) for row in top if entropies[row] >= 0]
        least = sorted([*least, *candidates], key=lambda one: (-one[0], one[1]))[:_LEAST_SURE]
    return {
        "rows": rows,
        "errors": dict(errors.most_common()),
        "abstained": dict(reasons.most_common()),
        "classes": dict(sorted(classes.items())),
        "quantiles": _quantiles(output),
        "least_sure": [{"id": name, "predictive_entropy": entropy} for entropy, name in least],
    }


def _counts(column: Any) -> dict[str, int]:
    counted = pc.value_counts(column.drop_null())
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def _quantiles(output: Output) -> dict[str, dict[str, float | None]]:
    rows = dataset.dataset(output.parts(), filesystem=output.filesystem, format="parquet")
    columns = [(name, level) for name in MEASURES for level in QUANTILES]
    digests = [(name, "tdigest", pc.TDigestOptions(q=level, delta=500), f"{name} {level}") for name, level in columns]
    plan = acero.Declaration.from_sequence(
        [
            acero.Declaration("scan", acero.ScanNodeOptions(rows, columns=list(MEASURES))),
            acero.Declaration("aggregate", acero.AggregateNodeOptions(digests)),
        ]
    )
    (row,) = plan.to_table().to_pylist()
    return {name: {str(level): row[f"{name} {level}"] for level in QUANTILES} for name in MEASURES}


def sections(summary: Mapping[str, Any]) -> list[tuple[Sequence[str], list[list[str]]]]:
    """The summary as tables, each with column heads and rows: counts, quantiles, most uncertain images."""
    counts = {f"error: {name}": count for name, count in summary["errors"].items()}
    counts |= {f"abstained: {name}": count for name, count in summary["abstained"].items()} | summary["classes"]
    quantiles = [
        [name, *("" if values[level] is None else f"{values[level]:.3f}" for level in map(str, QUANTILES))]
        for name, values in summary["quantiles"].items()
    ]
    least = [[one["id"], f"{one['predictive_entropy']:.3f}"] for one in summary["least_sure"]]
    return [
        (("", "images"), [[name, f"{count:,}"] for name, count in counts.items()]),
        (("quantile", *map(str, QUANTILES)), quantiles),
        (("most uncertain", "entropy (nats)"), least),
    ]
