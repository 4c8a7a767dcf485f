"""The table of routes. Dispatch, allowed methods, statuses in the metrics, and OpenAPI are derived from it."""

import anyio
from starlette.requests import Request
from starlette.responses import Response

from service.http import card_page, operations, static_files
from service.http.administration import ReloadEndpoint
from service.http.body_reader import BodyReader
from service.http.card_page import CardPage
from service.http.documents import CARD, DESCRIPTION, Documents
from service.http.feedback import FeedbackEndpoint
from service.http.keys import Keys
from service.http.open_inference import metadata
from service.http.predictions import PredictionEndpoints
from service.http.routing import Route, RouteTable
from service.http.static_files import PageFiles
from service.monitoring.metrics import CONTENT_TYPE, Metrics
from service.monitoring.prediction_log import PredictionLog
from service.reload import ReloadableModel
from service.settings import Settings

# Possible statuses of routes, apart from 200, 401 and 499.
_GET_STATUSES = (414, 431, 500)
_POST_STATUSES = (400, 408, 413, 414, 415, 422, 431, 500, 503)
_PREDICTION_STATUSES = (*_POST_STATUSES, 504)
_BENTOML_STATUSES = (404, 503)
_FILE_STATUSES = (*_GET_STATUSES, 304, 308, 404)

# Routes that BentoML answers: health, the description for its clients, and a page that shows our OpenAPI description.
_BENTOML = {
    "/livez": operations.LIVEZ,
    "/readyz": operations.READYZ,
    "/healthz": None,
    "/": None,
    "/schema.json": None,
    "/static_content/*": None,
}


def route_table(
    model: ReloadableModel, metrics: Metrics, prediction_log: PredictionLog, settings: Settings
) -> RouteTable:
    """Build the table.

    Args:
        model: the model that answers.
        metrics: the metrics that /metrics exposes.
        prediction_log: recent predictions, to which feedback can refer.
        settings: limits and keys.
    """
    bodies, documents, files = BodyReader(settings), Documents(model, settings), PageFiles(model)
    card = CardPage(model)
    predictions = PredictionEndpoints(model, bodies, settings)
    feedback = FeedbackEndpoint(model, bodies, prediction_log, metrics, settings)
    reload = ReloadEndpoint(model, bodies)
    keys, admin_keys = Keys(settings.read_api_keys()), Keys(settings.read_admin_keys())
    metrics_keys = keys if settings.metrics_need_key else None
    singles, batches = predictions.singles, predictions.batches
    infer_paths = [f"{path}/infer" for path in metadata.model_paths()]
    infer = infer_paths[0]

    async def show_metrics(_: Request) -> Response:
        text = await anyio.to_thread.run_sync(metrics.expose)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    table = RouteTable(
        [
            Route(
                "/predict",
                "POST",
                predictions.predict,
                _PREDICTION_STATUSES,
                operations.PREDICT,
                keys,
                admission=singles,
            ),
            Route(
                "/predict_batch",
                "POST",
                predictions.predict_batch,
                _PREDICTION_STATUSES,
                operations.PREDICT_BATCH,
                keys,
                admission=batches,
            ),
            Route("/rank", "POST", predictions.rank, _PREDICTION_STATUSES, operations.RANK, keys, admission=batches),
            *(
                Route(
                    path,
                    "POST",
                    predictions.infer,
                    _PREDICTION_STATUSES,
                    operations.INFER,
                    keys,
                    name=infer,
                    admission=batches,
                )
                for path in infer_paths
            ),
            Route("/feedback", "POST", feedback, (*_POST_STATUSES, 404), operations.FEEDBACK, keys),
            *(
                [Route("/admin/reload", "POST", reload, (*_POST_STATUSES, 409), operations.RELOAD, admin_keys)]
                if admin_keys
                else []
            ),
            Route("/metrics", "GET", show_metrics, _GET_STATUSES, operations.METRICS, metrics_keys),
            Route(DESCRIPTION, "GET", documents, _GET_STATUSES, operations.DESCRIPTION),
            Route(CARD, "GET", documents, _GET_STATUSES, operations.CARD),
            *(
                Route(path, "GET", documents, _GET_STATUSES, operations.OPEN_INFERENCE, name="/v2/*")
                for path in metadata.document_paths()
            ),
            *(
                Route(path, "GET", card, _FILE_STATUSES, name=static_files.NAME, policy=static_files.POLICY)
                for path in card_page.PATHS
            ),
            *(
                Route(path, "GET", files, _FILE_STATUSES, name=name, policy=static_files.POLICY)
                for path, name in static_files.file_paths().items()
            ),
            *(Route(path, "GET", None, _BENTOML_STATUSES, operation) for path, operation in _BENTOML.items()),
        ]
    )
    documents.describe(table)
    return table
