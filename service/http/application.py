"""The ASGI application: middlewares, then our routes, then BentoML's application."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware import Endpoints, middlewares
from service.http.routes import route_table
from service.monitoring.metrics import FLUSH_SECONDS, Metrics
from service.monitoring.prediction_log import PredictionLog
from service.reload import ReloadableModel
from service.settings import Settings

if TYPE_CHECKING:  # an optional dependency, imported only if tracing is configured
    from service.http.tracing import Tracing


class Application:
    """Answers HTTP requests; runs BentoML's lifespan together with our background tasks.

    Args:
        bentoml_app: BentoML's application, with its own routes and the lifespan.
        model: the model that answers.
        metrics: count the requests.
        prediction_log: recent predictions, to which feedback can refer.
        settings: limits and keys.
        cors: options of Starlette's `CORSMiddleware`; empty if no other origin is allowed.
        tracing: traces requests; None for no tracing.
    """

    def __init__(
        self,
        bentoml_app: ASGIApp,
        *,
        model: ReloadableModel,
        metrics: Metrics,
        prediction_log: PredictionLog,
        settings: Settings,
        cors: Mapping[str, Any],
        tracing: "Tracing | None",
    ) -> None:
        self._bentoml_app, self._model, self._metrics, self._tracing = bentoml_app, model, metrics, tracing
        table = route_table(model, metrics, prediction_log, settings)
        for route in table:
            metrics.route(route.label, route.method, route.counted_statuses, timed=route.method == "POST")
        self._app: ASGIApp = Endpoints(bentoml_app)
        for middleware in reversed(middlewares(table, metrics=metrics, settings=settings, cors=cors, tracing=tracing)):
            self._app = middleware.cls(self._app, *middleware.args, **middleware.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run the lifespan."""
        if scope["type"] == "http":
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._run(scope, receive, send)
        else:
            await self._bentoml_app(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the background tasks for as long as BentoML's lifespan."""
        tasks = [asyncio.create_task(task()) for task in (self._model.follow, self._flush_metrics)]

        async def send_after_cleanup(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):  # the process may end as soon as it is sent
                for task in tasks:
                    task.cancel()
                if self._tracing:
                    await anyio.to_thread.run_sync(self._tracing.close)
            await send(message)

        await self._bentoml_app(scope, receive, send_after_cleanup)

    async def _flush_metrics(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self._metrics.flush()
