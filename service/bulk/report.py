"""The HTML report of a run, as one self-contained page."""

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from PIL import Image

from service.bulk.inputs.source import Source
from service.bulk.output import Output
from service.bulk.scoring import Scorer
from service.bulk.summary import sections
from service.inference.pixels import Pixels
from service.inference.preparation import Input

_BINS = 60
_MEASURES: dict[str, tuple[str, float, float | None]] = {  # None: ln(classes)
    "confidence": ("confidence", 0.0, 1.0),
    "predictive_entropy": ("predictive entropy (nats)", 0.0, None),
    "mutual_information": ("mutual information (nats)", 0.0, 1.0),
    "novelty": ("novelty (0 typical, 1 far)", -2.0, 8.0),
}
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ccc}"
    "td:first-child,th:first-child{text-align:left}ul{display:flex;flex-wrap:wrap;gap:1rem;padding:0;list-style:none}"
    "li{width:8rem;overflow-wrap:anywhere;font-size:.8rem}li img{width:100%;image-rendering:pixelated}"
)

mpl.use("Agg")


def page(source: Source, scorer: Scorer, output: Output, summary: Mapping[str, Any]) -> bytes:
    """Make the page, in HTML: counts, distributions, quantiles and the most uncertain images.

    Args:
        source: the scored images.
        scorer: a scorer with the parameters of the run.
        output: the finished output.
        summary: summary of the output.
    """
    counts, quantiles, _ = sections(summary)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Bulk scoring</title>",
        f"<style>{_STYLE}</style><h1>{summary['rows']:,} images</h1>",
        f"<p>In {html.escape(output.where)}, by the model {html.escape(scorer.model)}.",
        _table(*counts),
        "<h2>Uncertainty</h2>",
        _img(
            _histograms(output, len(scorer.classes)),
            "Histograms of confidence, predictive entropy, mutual information and novelty",
        ),
        _table(*quantiles),
        "<h2>Most uncertain images</h2><p>The network's inputs, with their predictive entropy in nats.",
        _gallery(source, scorer, summary["least_sure"]),
        "</html>",
    ]
    return "\n".join(parts).encode()


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(heads, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _img(png: bytes, alternative: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{html.escape(alternative)}">'


def _histograms(output: Output, classes: int) -> bytes:
    counts = {name: np.zeros(_BINS, np.int64) for name in _MEASURES}
    measures = {
        name: (label, low, math.log(classes) if high is None else high)
        for name, (label, low, high) in _MEASURES.items()
    }
    for batch in output.batches(_MEASURES):
        for name, (_, low, high) in measures.items():
            values = batch.column(name).drop_null().to_numpy(zero_copy_only=False)
            counts[name] += np.histogram(np.clip(values, low, high), _BINS, (low, high))[0]
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (name, (label, low, high)) in zip(figure.subplots(2, 2).flat, measures.items(), strict=True):
        edges = np.linspace(low, high, _BINS + 1)
        axes.stairs(counts[name], edges, fill=True)
        axes.set(xlabel=label, ylabel="images", yscale="symlog", xlim=(low, high))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _gallery(source: Source, scorer: Scorer, least_sure: Sequence[Mapping[str, Any]]) -> str:
    ids = pa.array([one["id"] for one in least_sure], pa.string())
    pictures: dict[str, str] = {}
    for shard in source.shards:
        for rows in shard.read(ids, include=True):
            table = rows.filter(pc.is_valid(rows.column("image")))  # files may have been removed since the run
            names, inputs = table.column("id").to_pylist(), scorer.prepare(table.column("image").to_pylist())
            for name, prepared in zip(names, inputs, strict=True):
                if isinstance(prepared, Input):
                    pictures[name] = _img(_png(prepared.pixels), name)
    items = [
        f"<li>{pictures.get(one['id'], '')}{html.escape(one['id'])}<br>{one['predictive_entropy']:.3f}"
        for one in least_sure
    ]
    return f"<ul>{''.join(items)}</ul>"


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
