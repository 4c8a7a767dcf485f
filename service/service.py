"""The BentoML service: wiring only. `bentoml serve` in the project's root finds it through bentofile.yaml."""

import functools
import gc
import os
from typing import Annotated, Any

import bentoml
import torch
from bentoml.exceptions import BentoMLException
from pydantic import Field
from starlette.types import ASGIApp
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from model import Artifact, load_artifact
from service.decision import Decider
from service.images import Invert
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.predictor import Predictor
from service.routes import Edge
from service.schemas import Answer, call_from_values
from service.settings import Settings, SettingsError

_STORE_PREFIX = "bentoml:"


def _read_settings() -> Settings:
    try:
        return Settings.from_mapping(os.environ)
    except SettingsError as error:
        raise SystemExit(f"mcd: {error}") from error


SETTINGS = _read_settings()  # BentoML wants the number of workers when the service is declared


class EdgeService(bentoml.Service[Any]):  # type: ignore[misc] # BentoML exports it untyped
    """A BentoML service whose application stands behind our routes."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:  # noqa: FBT001, FBT002 - BentoML's signature
        """Build a worker's application, the model loaded and warm."""
        app = Edge(super().to_asgi(is_main), _pipeline(), _metrics(), SETTINGS)
        # What start-up left behind lives as long as the worker: keep it out of the collector's full passes, which
        # stop all requests for a tenth of a second and more.
        gc.collect()
        gc.freeze()
        return app


@bentoml.service(
    name="mcd",
    service_class=EdgeService,
    workers=SETTINGS.workers,
)
class UncertaintyService:
    """Classify clothing, and say how sure the network is."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    def check_model() -> None:
        """Refuse to start with a model that is not whole, before any worker is started."""
        _load()

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(  # noqa: PLR0913, PLR0917 - each is a parameter of the API; BentoML reads them here
        self,
        image: Annotated[str | list[Any], Field(description="PNG, JPEG or WebP file in base64, or a 28 x 28 array")],
        method: Annotated[str, Field(description="masks, or moments: without sampling")] = "masks",
        samples: Annotated[int | str, Field(description="0 for the eval-mode prediction, 2..1000 masks, or auto")] = 0,
        tolerance: Annotated[float | None, Field(description="with auto: standard error that suffices")] = None,
        max_samples: Annotated[int | None, Field(description="with auto: where to stop in any case")] = None,
        seed: Annotated[int, Field(description="of the masks")] = 0,
        coverage: Annotated[float, Field(description="of the prediction set: 0.8, 0.9, 0.95 or 0.99")] = 0.9,
        set_method: Annotated[str, Field(description="of the prediction set: lac or aps")] = "lac",
        max_risk: Annotated[float, Field(description="wrong answers to accept: 0.01, 0.02 or 0.05")] = 0.05,
        false_alarm_rate: Annotated[float, Field(description="of novelty: 0.001, 0.01 or 0.05")] = 0.01,
        calibrated: Annotated[bool, Field(description="false for raw probabilities")] = True,  # noqa: FBT002
        invert: Annotated[str, Field(description="auto, yes or no: swap dark and light")] = Invert.AUTO.value,
        dtype: Annotated[str, Field(description="of an array: uint8, or float for numbers in [0, 1]")] = "uint8",
    ) -> Answer:
        """Predict the class of one image; /predict also takes form fields and raw image bodies."""
        parameters: dict[str, object] = {
            "method": method,
            "samples": samples,
            "seed": seed,
            "coverage": coverage,
            "set_method": set_method,
            "max_risk": max_risk,
            "false_alarm_rate": false_alarm_rate,
            "calibrated": calibrated,
            "invert": invert,
            "dtype": dtype,
        }
        given = {"tolerance": tolerance, "max_samples": max_samples}
        parameters |= {name: value for name, value in given.items() if value is not None}
        pipeline = _pipeline()
        return pipeline.finish(pipeline.open(call_from_values(image, parameters.items())))


@functools.cache
def _metrics() -> Metrics:
    return Metrics()


@functools.cache
def _pipeline() -> Pipeline:
    # One core a worker: more workers are the way to more cores. Bits depend on the number of threads, too.
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")
    predictor, decider = _load()
    predictor.warm_up()
    return Pipeline(predictor, decider, _metrics(), SETTINGS)


def _load() -> tuple[Predictor, Decider]:
    try:
        artifact = _load_artifact()
        return Predictor(artifact), Decider(artifact)
    except (BentoMLException, TypeError, ValueError) as error:
        raise SystemExit(f"mcd: the model can't be served: {error}") from error


def _load_artifact() -> Artifact:
    if SETTINGS.model.startswith(_STORE_PREFIX):
        return load_artifact(bentoml.models.get(SETTINGS.model.removeprefix(_STORE_PREFIX)).path)
    return load_artifact(SETTINGS.model or None)
