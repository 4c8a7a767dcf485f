"""Images -> rows: what the service would answer, many at once."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from model import Artifact, Uncertainty
from service.decision import Decider, Decision
from service.images import SIDE, Prepared
from service.parameters import Parameters
from service.pipeline import decode, open_any, predict
from service.predictor import Prediction, Predictor
from service.problems import Problem

AT_ONCE = 256

_CLASSES = pa.list_(pa.float64())
# As the service's answers name them; null, where there is an error, but id, error and the last four.
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


class Scorer:
    """Scores tables of images, on one thread.

    Args:
        artifact: the model.
        parameters: how to predict and decide.
        encoded: whether the images are files, or arrays of 784 bytes.
        max_pixels: largest width x height of an image file.
    """

    def __init__(self, artifact: Artifact, parameters: Parameters, *, encoded: bool, max_pixels: int) -> None:
        torch.set_num_threads(1)
        threadpool_limits(1, user_api="blas")
        self._predictor, self._decider = Predictor(artifact), Decider(artifact)
        self._parameters, self._encoded, self._max_pixels = parameters, encoded, max_pixels
        self.model = artifact.sha256
        self._same = {"model": self.model, "method": parameters.method, "seed": parameters.seed}

    def __call__(self, images: pa.Table) -> pa.Table:
        """Turn a table of `inputs.IMAGES` into one of `ROWS`, in the same order."""
        batches = [
            pa.RecordBatch.from_pylist(list(self._rows(images.slice(first, AT_ONCE))), schema=ROWS)
            for first in range(0, len(images), AT_ONCE)
        ]
        return pa.Table.from_batches(batches, schema=ROWS)

    def _rows(self, images: pa.Table) -> Iterator[dict[str, Any]]:
        ids, encoded, errors = (images.column(name).to_pylist() for name in ("id", "image", "error"))
        found = [error or self.read(image) for image, error in zip(encoded, errors, strict=True)]
        prepared = [one for one in found if isinstance(one, Prepared)]
        scored = self._score(prepared)
        for identifier, one in zip(ids, found, strict=True):
            same = {"id": identifier, **self._same}
            yield same | ({"error": one} if isinstance(one, str) else next(scored))

    def read(self, image: bytes) -> Prepared | str:
        """Bring an image to what the network takes, or tell what is wrong with it."""
        try:
            source = image if self._encoded else np.frombuffer(image, np.uint8).reshape(SIDE, SIDE)
            return decode(open_any(source, max_pixels=self._max_pixels), self._parameters)
        except Problem as problem:
            return f"{problem.kind}: {problem.detail}"

    def _score(self, prepared: Sequence[Prepared]) -> Iterator[dict[str, Any]]:
        if not prepared:
            return
        pixels_BHW = np.stack([one.pixels for one in prepared])
        predictions = predict(self._predictor, pixels_BHW, self._parameters)
        decisions = self._decisions(predictions, pixels_BHW)
        for prediction, decision, one in zip(predictions, decisions, prepared, strict=True):
            yield self._row(prediction, decision, one)

    def _decisions(self, predictions: Sequence[Prediction], pixels_BHW: np.ndarray) -> Sequence[Decision]:
        demands, seed = self._parameters.demands, self._parameters.seed
        if self._parameters.samples != "auto":
            return self._decider.decide(predictions, pixels_BHW, demands, seed=seed)
        alone = zip(predictions, pixels_BHW, strict=True)
        return [self._decider.decide([one], pixels[None], demands, seed=seed)[0] for one, pixels in alone]

    def _row(self, prediction: Prediction, decision: Decision, prepared: Prepared) -> dict[str, Any]:
        calibrated = decision.probabilities if self._parameters.calibrated else None
        probabilities = prediction.probabilities if calibrated is None else calibrated
        return {
            "label": prediction.label,
            "class_index": prediction.class_index,
            "confidence": probabilities[prediction.class_index],
            "probabilities": probabilities,
            "predictive_entropy": prediction.predictive_entropy,
            "prediction_set": decision.prediction_set,
            "abstain": decision.reason is not None,
            "abstain_reason": decision.reason,
            "novelty": None if decision.novelty is None else decision.novelty.score,
            "image_hash": prepared.image_hash,
            "warnings": [*prepared.warnings, *prediction.warnings, *decision.warnings],
            "samples": prediction.samples,
            **_spread(prediction),
        }


def _spread(prediction: Prediction) -> dict[str, Any]:
    found = prediction.uncertainty
    if found is None:
        return {}
    standard_error = found.standard_error.numpy()[0].tolist() if isinstance(found, Uncertainty) else None
    return {
        "variance": found.variance.numpy()[0].tolist(),
        "standard_error": standard_error,
        "expected_entropy": found.expected_entropy.item(),
        "mutual_information": found.mutual_information.item(),
    }
