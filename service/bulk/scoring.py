"""Images -> rows: what the service would answer, many at once."""

import gc
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from model import Artifact, Uncertainty
from service.inference.decision import DecisionPolicy
from service.inference.images import SIDE, ImageLimits
from service.inference.predictor import Predictor
from service.inference.preparation import Prepared
from service.pipeline import decode_all, predict
from service.schemas.parameters import Parameters
from service.schemas.problems import Problem

AT_ONCE = 256

_CLASSES = pa.list_(pa.float64())
# As the service's answers name them; where there is an error, null but id, error and what all rows share.
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
        ("image_hash", pa.string()),
        ("warnings", pa.list_(pa.string())),
        ("error", pa.string()),
        ("model", pa.string()),
        ("method", pa.string()),
        ("samples", pa.int64()),
        ("seed", pa.int64()),
    ]
)
REPEATED = ["label", "abstain_reason", "model", "method"]


class Scorer:
    """Scores tables of images, on one thread, in a process that does nothing else.

    Args:
        artifact: the model.
        parameters: how to predict and decide.
        encoded: whether the images are files, or arrays of 784 bytes.
        limits: of image files.
    """

    def __init__(self, artifact: Artifact, parameters: Parameters, *, encoded: bool, limits: ImageLimits) -> None:
        torch.set_num_threads(1)
        threadpool_limits(1, user_api="blas")
        self._at_once = 1 if parameters.samples == "auto" else AT_ONCE
        self._predictor, self._policy = Predictor(artifact), DecisionPolicy(artifact, together=self._at_once > 1)
        self._parameters, self._encoded, self._limits = parameters, encoded, limits
        self.model = artifact.sha256
        self._same = {"model": self.model, "method": parameters.method, "seed": parameters.seed}
        if parameters.samples != "auto":
            self._same["samples"] = parameters.samples
        gc.collect()
        gc.freeze()  # what lives as long as the process is of no use to the collector, which takes a fifth of its time

    def __call__(self, images: pa.Table) -> pa.Table:
        """Turn a table of `inputs.IMAGES` into one of `ROWS`, in the same order."""
        told = images.column("error").to_pylist()
        decoded = iter(self.read(images.column("image").drop_null().to_pylist()))
        found = [error or next(decoded) for error in told]
        errors = [one if isinstance(one, str) else None for one in found]
        prepared = [one for one in found if isinstance(one, Prepared)]
        columns = self._columns(prepared)
        if len(prepared) < len(found):
            places = iter(range(len(prepared)))
            rows = pa.array([next(places) if error is None else None for error in errors], pa.int64())
            columns = {name: column.take(rows) for name, column in columns.items()}
        columns |= {"id": images.column("id"), "error": pa.array(errors, pa.string())}
        columns |= {
            name: pa.repeat(pa.scalar(value, ROWS.field(name).type), len(found)) for name, value in self._same.items()
        }
        return pa.table([columns.get(field.name, pa.nulls(len(found), field.type)) for field in ROWS], schema=ROWS)

    def _columns(self, prepared: Sequence[Prepared]) -> dict[str, pa.Array]:
        firsts = range(0, len(prepared), self._at_once)
        parts = [self._score(prepared[first : first + self._at_once]) for first in firsts]
        return {name: _column(name, [part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def read(self, images: Sequence[bytes]) -> list[Prepared | str]:
        """Bring images to what the network takes, or tell what is wrong with them."""
        sources = images if self._encoded else [np.frombuffer(one, np.uint8).reshape(SIDE, SIDE) for one in images]
        try:
            decoded = decode_all(sources, self._parameters, self._limits)
        except Exception as error:  # noqa: BLE001 - whatever one image brings about, the others are scored
            if len(images) == 1:
                return [f"internal-error: {type(error).__name__}: {error}"]
            return [found for one in images for found in self.read([one])]
        return [f"{one.kind}: {one.detail}" if isinstance(one, Problem) else one for one in decoded]

    def _score(self, prepared: Sequence[Prepared]) -> dict[str, Any]:
        """Predict and decide: what the service would answer, by columns."""
        pixels_BHW = np.stack([one.pixels for one in prepared])
        predictions = predict(self._predictor, pixels_BHW, self._parameters)
        decisions = self._policy.decide(
            predictions, pixels_BHW, self._parameters.decision_options, seed=self._parameters.seed
        )
        index_B = predictions.probs_BC.argmax(axis=1)
        calibrated_BC = decisions.probs_BC if self._parameters.calibrated else None
        probs_BC = predictions.probs_BC if calibrated_BC is None else calibrated_BC
        common = [*predictions.warnings, *decisions.warnings]
        found = predictions.uncertainty
        sets: Sequence[list[str] | None] = decisions.sets or [None] * len(prepared)
        columns = {
            "label": [predictions.classes[index] for index in index_B],
            "class_index": index_B,
            "confidence": np.take_along_axis(probs_BC, index_B[:, None], axis=1)[:, 0],
            "probabilities": probs_BC,
            "variance": None if found is None else found.variance.numpy(),
            "standard_error": found.standard_error.numpy() if isinstance(found, Uncertainty) else None,
            "predictive_entropy": predictions.entropy_B,
            "expected_entropy": None if found is None else found.expected_entropy.numpy(),
            "mutual_information": None if found is None else found.mutual_information.numpy(),
            "prediction_set": list(sets),
            "abstain": [reason is not None for reason in decisions.reasons],
            "abstain_reason": decisions.reasons,
            "novelty": decisions.novelty_B,
            "image_hash": [one.image_hash for one in prepared],
            "warnings": [[*one.warnings, *common] for one in prepared],
            "samples": np.full(len(prepared), predictions.samples),
        }
        return {name: column for name, column in columns.items() if column is not None}


def _column(name: str, parts: Sequence[Any]) -> pa.Array:
    """Join lists or arrays, (B,) or (B, C)."""
    if isinstance(parts[0], list):
        return pa.array(list(itertools.chain.from_iterable(parts)), ROWS.field(name).type)
    values = np.concatenate(parts)
    if values.ndim == 1:
        return pa.array(values, ROWS.field(name).type)
    starts = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(starts, values.ravel())
