"""Scores images in large batches; the rows have the values that the service would answer."""

import gc
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from model import Artifact, Uncertainty
from service.inference.decision import Decisions
from service.inference.limits import ImageLimits
from service.inference.predictor import Predictions
from service.inference.preparation import Input
from service.pipeline import Batch, Pipeline, Run
from service.schemas.parameters import Parameters
from service.schemas.problems import Problem

AT_ONCE = 256

_CLASSES = pa.list_(pa.float64())
# Columns are named like the fields of the service's answers. In rows with an error, only id, error, model, method,
# samples (if fixed) and seed are set.
ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("class_index", pa.int64()),
        ("confidence", pa.float64()),
        ("probabilities", _CLASSES),
        ("variance", _CLASSES),
        ("standard_error", _CLASSES),
        ("predictive_entropy", pa.float64()),
        ("expected_entropy", pa.float64()),
        ("mutual_information", pa.float64()),
        ("prediction_set", pa.list_(pa.string())),
        ("abstain", pa.bool_()),
        ("abstain_reason", pa.string()),
        ("novelty", pa.float64()),
        ("novelty_view", pa.string()),
        ("image_hash", pa.string()),
        ("warnings", pa.list_(pa.string())),
        ("error", pa.string()),
        ("model", pa.string()),
        ("method", pa.string()),
        ("samples", pa.int64()),
        ("seed", pa.int64()),
    ]
)
REPEATED = ["label", "abstain_reason", "novelty_view", "model", "method"]


class Scorer:
    """Scores tables of images on one thread, in a process of its own.

    Args:
        artifact: the model.
        parameters: how to predict and decide.
        encoded: whether the images are image files instead of arrays of the network's pixels.
        limits: limits on image files.
    """

    def __init__(self, artifact: Artifact, parameters: Parameters, *, encoded: bool, limits: ImageLimits) -> None:
        threadpool_limits(1, user_api="blas")
        self._at_once = 1 if parameters.samples == "auto" else AT_ONCE
        self._pipeline = Pipeline(artifact, limits, novelty_together=self._at_once > 1)
        self.classes, self.spec = self._pipeline.classes, self._pipeline.input
        self._parameters, self._encoded = parameters, encoded
        self.model = artifact.sha256
        self._constants = {"model": self.model, "method": parameters.method, "seed": parameters.seed}
        if parameters.samples != "auto":
            self._constants["samples"] = parameters.samples
        gc.collect()
        gc.freeze()  # exclude permanent objects from garbage collection, which would take a fifth of the time

    def __call__(self, images: pa.Table) -> pa.Table:
        """Score a table with schema `inputs.source.IMAGES`; return a table with schema `ROWS` in the same order."""
        batches = list(self._evaluate(images.column("image").drop_null().to_pylist()))
        evaluated = iter(image for batch in batches for image in batch.images)
        outcomes = [error or next(evaluated) for error in images.column("error").to_pylist()]
        errors = [None if isinstance(one, Input) else _text(one) for one in outcomes]
        columns = self._columns(batches)
        if any(errors):
            indices = itertools.count()
            rows = pa.array([next(indices) if error is None else None for error in errors], pa.int64())
            columns = {name: column.take(rows) for name, column in columns.items()}
        columns |= {"id": images.column("id"), "error": pa.array(errors, pa.string())}
        columns |= {
            name: pa.repeat(pa.scalar(value, ROWS.field(name).type), len(errors))
            for name, value in self._constants.items()
        }
        return pa.table([columns.get(field.name, pa.nulls(len(errors), field.type)) for field in ROWS], schema=ROWS)

    def prepare(self, images: Sequence[bytes]) -> list[Input | str]:
        """Prepare images for the network; an error message takes the place of an invalid image."""
        prepared = [image for batch in self._evaluate(images) for image in batch.images]
        return [_text(image) if isinstance(image, Problem) else image for image in prepared]

    def _evaluate(self, images: Sequence[bytes]) -> Iterator[Batch]:
        sides = self.spec.pixel_shape
        sources = images if self._encoded else [np.frombuffer(one, np.uint8).reshape(sides) for one in images]
        run = Run()
        for first in range(0, len(sources), self._at_once):
            group = [self._pipeline.try_accept(image, run) for image in sources[first : first + self._at_once]]
            yield from self._pipeline.evaluate(group, self._parameters, self._parameters.decision_options, run)

    def _columns(self, batches: Sequence[Batch]) -> dict[str, pa.Array]:
        parts = [
            self._values(batch.images, batch.predictions, batch.decisions)
            for batch in batches
            if batch.predictions is not None and batch.decisions is not None
        ]
        return {name: _column(name, [part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def _values(
        self, images: Sequence[Input | Problem], predictions: Predictions, decisions: Decisions
    ) -> dict[str, Any]:
        """Columns with the service's answers to all valid images."""
        inputs = [image for image in images if isinstance(image, Input)]
        index_B = predictions.probs_BC.argmax(axis=1)
        calibrated_BC = decisions.probs_BC if self._parameters.calibrated else None
        probs_BC = predictions.probs_BC if calibrated_BC is None else calibrated_BC
        common = [*predictions.warnings, *decisions.warnings]
        uncertainty = predictions.uncertainty
        sets: Sequence[list[str] | None] = decisions.sets or [None] * len(inputs)
        columns = {
            "label": [predictions.classes[index] for index in index_B],
            "class_index": index_B,
            "confidence": np.take_along_axis(probs_BC, index_B[:, None], axis=1)[:, 0],
            "probabilities": probs_BC,
            "variance": None if uncertainty is None else uncertainty.variance,
            "standard_error": uncertainty.standard_error if isinstance(uncertainty, Uncertainty) else None,
            "predictive_entropy": predictions.entropy_B,
            "expected_entropy": None if uncertainty is None else uncertainty.expected_entropy,
            "mutual_information": None if uncertainty is None else uncertainty.mutual_information,
            "prediction_set": list(sets),
            "abstain": [reason is not None for reason in decisions.reasons],
            "abstain_reason": decisions.reasons,
            "novelty": None if decisions.novelty is None else decisions.novelty.score_B,
            "novelty_view": None if decisions.novelty is None else decisions.novelty.view_B,
            "image_hash": [one.image_hash for one in inputs],
            "warnings": [[*one.warnings, *common] for one in inputs],
            "samples": np.full(len(inputs), predictions.samples),
        }
        return {name: column for name, column in columns.items() if column is not None}


def _text(error: str | Problem) -> str:
    """The error of an image in one line, for its row."""
    if isinstance(error, str):
        return error
    cause = error.__cause__
    is_unexpected = error.kind == "internal-error" and cause is not None
    return f"{error.kind}: {type(cause).__name__}: {cause}" if is_unexpected else f"{error.kind}: {error.detail}"


def _column(name: str, parts: Sequence[Any]) -> pa.Array:
    """Concatenate lists or arrays, (B,) or (B, C), into a column."""
    if isinstance(parts[0], list):
        return pa.array(list(itertools.chain.from_iterable(parts)), ROWS.field(name).type)
    values = np.concatenate(parts)
    if values.ndim == 1:
        return pa.array(values, ROWS.field(name).type)
    starts = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(starts, values.ravel())
