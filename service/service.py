"""The BentoML service: it only connects the parts. `bentoml serve` in the project's root finds it by bentofile.yaml."""

import functools
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import bentoml
from pydantic import Field
from starlette.types import ASGIApp
from threadpoolctl import threadpool_limits

from service.bentoml_internals import SHARED_FOLDER, at_hangup, bentoml_cors_options, service_behind
from service.http.application import Application
from service.http.connections import guard_connections
from service.http.cors import cors_options
from service.http.request_body import image_of, images_of
from service.inference.artifacts import load_named
from service.inference.limits import ImageLimits
from service.monitoring.coverage import CoverageFile, CoverageMonitor
from service.monitoring.logs import write_log
from service.monitoring.metrics import CoverageCollector, Metrics, PredictionCollector
from service.monitoring.observer import PredictionObserver
from service.monitoring.prediction_log import PredictionLog
from service.pipeline import Pipeline, Run
from service.reload import ModelError, ReloadableModel, request_reload
from service.schemas.answers import BatchAnswer
from service.schemas.parameters import Parameters, RankParameters
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from service.http.tracing import Tracing


def _read_settings() -> Settings:
    try:
        return Settings.from_mapping(os.environ)
    except SettingsError as error:
        raise SystemExit(f"mcd: {error}") from error


SETTINGS = _read_settings()  # BentoML needs the number of workers when the service is declared


def _make_application(bentoml_app: ASGIApp) -> ASGIApp:
    """Build a worker's application, with the model loaded and warmed up."""
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
    # Objects created at start-up live as long as the worker. Exclude them from full garbage collections, which would
    # stop all requests for a tenth of a second or more.
    gc.collect()
    gc.freeze()
    return app


def _cors_options() -> dict[str, Any]:
    """Our CORS options; without allowed origins in our settings, those of BentoML's configuration."""
    if SETTINGS.origins:
        return cors_options({"allow_origins": SETTINGS.origins})
    return cors_options(bentoml_cors_options())


_IMAGE = "PNG, JPEG or WebP file in base64, or an array of the network's size"


class OneImage(Parameters, bentoml.IODescriptor):  # type: ignore[misc]
    """Input of /predict for BentoML's clients."""

    image: Annotated[str | list[Any], Field(description=_IMAGE)]


class ManyImages(Parameters, bentoml.IODescriptor):  # type: ignore[misc]
    """Input of /predict_batch for BentoML's clients."""

    images: Annotated[list[str | list[Any]], Field(description=_IMAGE, min_length=1)]


class Pool(RankParameters, bentoml.IODescriptor):  # type: ignore[misc]
    """Input of /rank for BentoML's clients."""

    images: Annotated[list[str | list[Any]], Field(description=_IMAGE, min_length=1)]


@bentoml.service(
    name="mcd",
    service_class=service_behind(_make_application),
    workers=SETTINGS.workers,
    logging={"access": {"enabled": False}},  # our middleware logs each request
    metrics={"enabled": False},  # our middleware counts requests; BentoML would make a time series of every path
)
class UncertaintyService:
    """Classify images, and report the network's uncertainty."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    def check_model() -> None:
        """Refuse to start with a model that can't be served, before any worker starts; runs in the supervisor."""
        try:
            _load()
            _tracing()
        except ModelError as error:
            raise SystemExit(f"mcd: {error}") from error
        at_hangup(request_reload)

    # Our application answers these requests before they reach BentoML. BentoML derives its clients' schema from these
    # methods. Its client can't read answers in which a list may be null, so they return plain JSON objects here;
    # /docs.json has the full schema.

    @bentoml.api(input_spec=OneImage)  # type: ignore[untyped-decorator]
    def predict(self, image: str | list[Any], **parameters: Any) -> dict[str, Any]:
        """Predict the class of one image; /predict also accepts forms, image files and .npy."""
        pipeline, checked = _model().pipeline, Parameters.gather(parameters.items())
        return pipeline.answer(pipeline.accept(image_of(image)), checked, Run()).model_dump()

    @bentoml.api(input_spec=ManyImages)  # type: ignore[untyped-decorator]
    def predict_batch(self, images: list[Any], **parameters: Any) -> dict[str, Any]:
        """Predict the classes of several images, each independently of the others."""
        answers = _model().pipeline.answers(images_of(images), Parameters.gather(parameters.items()), Run())
        return BatchAnswer.of(answers).model_dump()

    @bentoml.api(input_spec=Pool)  # type: ignore[untyped-decorator]
    def rank(self, images: list[Any], **parameters: Any) -> dict[str, Any]:
        """Rank images by how informative their labels would be for training."""
        return _model().pipeline.rank(images_of(images), RankParameters.gather(parameters.items()), Run()).model_dump()


@functools.cache
def _metrics() -> Metrics:
    return Metrics()


@functools.cache
def _prediction_log() -> PredictionLog:
    try:
        return PredictionLog(_recent_folder(), SETTINGS.recent_predictions)
    except OSError as error:
        raise SystemExit(f"mcd: MCD_RECENT_FOLDER: can't be written ({error})") from error


@functools.cache
def _coverage_file() -> CoverageFile:
    return CoverageFile(_recent_folder())


def _recent_folder() -> Path | None:
    return Path(SETTINGS.recent_folder) if SETTINGS.recent_folder else _shared_folder()


def _shared_folder() -> Path | None:
    """The folder that BentoML creates for all workers of this server; None without BentoML."""
    folder = os.environ.get(SHARED_FOLDER)
    return Path(folder) if folder else None


@functools.cache
def _tracing() -> "Tracing | None":
    if not SETTINGS.otlp_endpoint:
        return None
    try:
        from service.http.tracing import Tracing  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise SystemExit(f"mcd: MCD_OTLP_ENDPOINT: install the extra: pip install 'mcd[tracing]' ({error})") from error
    return Tracing(SETTINGS.otlp_endpoint, ratio=SETTINGS.traced_ratio)


@functools.cache
def _model() -> ReloadableModel:
    threadpool_limits(1, user_api="blas")  # one thread per worker: add workers to use more cores
    try:
        model = ReloadableModel(_load, _shared_folder(), _metrics())
    except ModelError as error:
        raise SystemExit(f"mcd: {error}") from error
    _metrics().derive(
        PredictionCollector(_prediction_log(), lambda: model.pipeline.reference, images=SETTINGS.drift_images)
    )
    _metrics().derive(CoverageCollector(lambda: model.pipeline.coverage))
    return model


def _load() -> Pipeline:
    try:
        limits = ImageLimits(SETTINGS.max_pixels, SETTINGS.max_aspect_ratio)
        artifact = load_named(SETTINGS.model)
        observer = PredictionObserver(_metrics(), _prediction_log(), artifact.classes)
        coverage = CoverageMonitor(_coverage_file(), artifact, adaptive=SETTINGS.adaptive)
        return Pipeline(artifact, limits, observer=observer, coverage=coverage)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the model can't be served: {error}") from error
