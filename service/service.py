"""The BentoML service: wiring only. `bentoml serve` in the project's root finds it through bentofile.yaml."""

import functools
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import bentoml
import torch
from bentoml.exceptions import BentoMLException
from pydantic import Field
from starlette.types import ASGIApp
from threadpoolctl import threadpool_limits

from model import Artifact, load_artifact
from service.bentoml_internals import bentoml_cors_options, pass_hangup_to_workers, service_behind
from service.http.application import Application
from service.http.connections import guard_connections
from service.http.cors import cors_options
from service.http.request_body import image_of, images_of
from service.inference.limits import ImageLimits
from service.monitoring.logs import write_log
from service.monitoring.metrics import Metrics, PredictionCollector
from service.monitoring.observer import PredictionObserver
from service.monitoring.prediction_log import PredictionLog
from service.pipeline import Pipeline, Run
from service.reload import ModelError, ReloadableModel
from service.schemas.answers import BatchAnswer
from service.schemas.parameters import Parameters, RankParameters
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from service.http.tracing import Tracing

_STORE_PREFIX = "bentoml:"


def _read_settings() -> Settings:
    try:
        return Settings.from_mapping(os.environ)
    except SettingsError as error:
        raise SystemExit(f"mcd: {error}") from error


SETTINGS = _read_settings()  # BentoML wants the number of workers when the service is declared


def _make_application(bentoml_app: ASGIApp) -> ASGIApp:
    """Build a worker's application, the model loaded and warm."""
    write_log(SETTINGS.log_level)
    guard_connections(SETTINGS, _metrics())
    app = Application(
        bentoml_app,
        model=_model(),
        metrics=_metrics(),
        prediction_log=_prediction_log(),
        settings=SETTINGS,
        cors=_cors_options(),
        tracing=_tracing(),
    )
    # What start-up left behind lives as long as the worker: keep it out of the collector's full passes, which
    # stop all requests for a tenth of a second and more.
    gc.collect()
    gc.freeze()
    return app


def _cors_options() -> dict[str, Any]:
    """Ours; without any, those of BentoML's own setting, which has no effect on routes before its application."""
    if SETTINGS.origins:
        return cors_options({"allow_origins": SETTINGS.origins})
    return cors_options(bentoml_cors_options())


_IMAGE = "PNG, JPEG or WebP file in base64, or a 28 x 28 array"


class OneImage(Parameters, bentoml.IODescriptor):  # type: ignore[misc]
    """What BentoML's clients send to /predict."""

    image: Annotated[str | list[Any], Field(description=_IMAGE)]


class ManyImages(Parameters, bentoml.IODescriptor):  # type: ignore[misc]
    """What BentoML's clients send to /predict_batch."""

    images: Annotated[list[str | list[Any]], Field(description=_IMAGE, min_length=1)]


class Pool(RankParameters, bentoml.IODescriptor):  # type: ignore[misc]
    """What BentoML's clients send to /rank."""

    images: Annotated[list[str | list[Any]], Field(description=_IMAGE, min_length=1)]


@bentoml.service(
    name="mcd",
    service_class=service_behind(_make_application),
    workers=SETTINGS.workers,
    logging={"access": {"enabled": False}},  # the edge writes a line for each request
    metrics={"enabled": False},  # and counts it; BentoML has a series for each path that anybody asks for
)
class UncertaintyService:
    """Classify clothing, and say how sure the network is."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    def check_model() -> None:
        """Refuse to start with a model that is not whole, before any worker is started; here the supervisor runs."""
        try:
            _load()
            _tracing()
        except ModelError as error:
            raise SystemExit(f"mcd: {error}") from error
        pass_hangup_to_workers()

    # Requests are answered before they reach BentoML, which reads here what its clients may send. Its client can't read
    # answers in which a list may be null, so that it is told of JSON objects only; /docs.json tells more.

    @bentoml.api(input_spec=OneImage)  # type: ignore[untyped-decorator]
    def predict(self, image: str | list[Any], **parameters: Any) -> dict[str, Any]:
        """Predict the class of one image; /predict also takes forms, image bodies and .npy."""
        pipeline, asked = _model().pipeline, Parameters.gather(parameters.items())
        return pipeline.answer(pipeline.accept(image_of(image)), asked, Run()).model_dump()

    @bentoml.api(input_spec=ManyImages)  # type: ignore[untyped-decorator]
    def predict_batch(self, images: list[Any], **parameters: Any) -> dict[str, Any]:
        """Predict the classes of many images, each as if it were alone."""
        answers = _model().pipeline.answers(images_of(images), Parameters.gather(parameters.items()), Run())
        return BatchAnswer.of(answers).model_dump()

    @bentoml.api(input_spec=Pool)  # type: ignore[untyped-decorator]
    def rank(self, images: list[Any], **parameters: Any) -> dict[str, Any]:
        """Order images by how much their labels would tell."""
        return _model().pipeline.rank(images_of(images), RankParameters.gather(parameters.items()), Run()).model_dump()


@functools.cache
def _metrics() -> Metrics:
    return Metrics()


@functools.cache
def _prediction_log() -> PredictionLog:
    try:
        return PredictionLog(
            Path(SETTINGS.recent_folder) if SETTINGS.recent_folder else _shared(), SETTINGS.recent_predictions
        )
    except OSError as error:
        raise SystemExit(f"mcd: MCD_RECENT_FOLDER: can't be written ({error})") from error


def _shared() -> Path | None:
    """The folder that all workers of this server share, under BentoML."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


@functools.cache
def _tracing() -> "Tracing | None":
    if not SETTINGS.otlp_endpoint:
        return None
    try:
        from service.http.tracing import Tracing  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SystemExit(f"mcd: MCD_OTLP_ENDPOINT: pip install 'mcd[tracing]' is needed ({error})") from error
    return Tracing(SETTINGS.otlp_endpoint, ratio=SETTINGS.traced_ratio)


@functools.cache
def _model() -> ReloadableModel:
    # One core a worker: more workers are the way to more cores. Bits depend on the number of threads, too.
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")
    try:
        model = ReloadableModel(_load, _shared(), _metrics())
    except ModelError as error:
        raise SystemExit(f"mcd: {error}") from error
    _metrics().derive(
        PredictionCollector(_prediction_log(), lambda: model.pipeline.reference, images=SETTINGS.drift_images)
    )
    return model


def _load() -> Pipeline:
    try:
        limits = ImageLimits(SETTINGS.max_pixels, SETTINGS.max_aspect_ratio)
        observer = PredictionObserver(_metrics(), _prediction_log())
        return Pipeline(_load_artifact(), limits, observer=observer)
    except (BentoMLException, TypeError, ValueError) as error:
        raise ModelError(f"the model can't be served: {error}") from error


def _load_artifact() -> Artifact:
    if SETTINGS.model.startswith(_STORE_PREFIX):
        return load_artifact(bentoml.models.get(SETTINGS.model.removeprefix(_STORE_PREFIX)).path)
    return load_artifact(SETTINGS.model or None)
