"""Administration: reloading the model."""

import json

import anyio
from starlette.requests import Request
from starlette.responses import Response

from service.http.body_reader import BodyReader
from service.http.responses import json_response
from service.reload import ModelError, ReloadableModel
from service.schemas.problems import Problem


class ReloadEndpoint:
    """Endpoint that makes all workers load the model that is now on disk.

    Args:
        model: the model to reload.
        bodies: reads request bodies.
    """

    def __init__(self, model: ReloadableModel, bodies: BodyReader) -> None:
        self._model, self._bodies = model, bodies

    async def __call__(self, request: Request) -> Response:
        """Load the model, or keep the current one if loading fails."""
        await self._bodies.read(request)
        try:
            model = await anyio.to_thread.run_sync(lambda: self._model.reload(notify=True))
        except ModelError as error:
            raise Problem("model-refused", f"the previous model stays in use: {error}") from error
        return json_response(json.dumps({"model": model}).encode())
