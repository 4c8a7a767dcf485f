"""Applications to compare the service with: the same decoding, inference and decision in other frameworks."""

import functools
import io
from typing import Any

import bentoml
import numpy as np
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from threadpoolctl import threadpool_limits

from model import load_artifact
from service.inference.decision import DecisionOptions, DecisionPolicy
from service.inference.predictor import Predictor

SAMPLES = 100
OPTIONS = DecisionOptions(coverage=0.9, set_method="lac", max_risk=0.05, false_alarm_rate=0.01)


@functools.cache
def load_stages() -> tuple[Predictor, DecisionPolicy]:
    """Load predictor and decision policy of the embedded model, on one thread."""
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")
    artifact = load_artifact()
    return Predictor(artifact), DecisionPolicy(artifact)


def answer(image: Image.Image) -> dict[str, Any]:
    """Predict with masks, compute the uncertainty, and decide."""
    predictor, policy = load_stages()
    pixels = np.asarray(image.convert("L"))
    predictions = predictor.sample(pixels[None], samples=SAMPLES, seed=0)
    decisions = policy.decide(predictions, pixels[None], OPTIONS, seed=0)
    (prediction,), (decision,) = predictions.each(), decisions.each()
    uncertainty = prediction.uncertainty
    return {
        "label": prediction.label,
        "probabilities": decision.probabilities,
        "variance": uncertainty.variance[0].tolist(),
        "standard_error": uncertainty.standard_error[0].tolist(),
        "predictive_entropy": prediction.predictive_entropy,
        "expected_entropy": uncertainty.expected_entropy.item(),
        "mutual_information": uncertainty.mutual_information.item(),
        "prediction_set": decision.prediction_set,
        "abstain_reason": decision.reason,
        "novelty": decision.novelty.score,
    }


async def _predict(request: Request) -> JSONResponse:
    return JSONResponse(answer(Image.open(io.BytesIO(await request.body()), formats=["PNG"])))


starlette_app = Starlette(routes=[Route("/predict", _predict, methods=["POST"])])


@bentoml.service(name="idiom")
class PlainBentoService:
    """A service written as in BentoML's documentation."""

    def __init__(self) -> None:
        load_stages()

    @bentoml.api
    def predict(self, image: Image.Image) -> dict[str, Any]:
        """Predict one image."""
        return answer(image)
