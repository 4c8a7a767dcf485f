"""The administration: reloading the model."""

import json

import anyio
from starlette.requests import Request
from starlette.responses import Response

from service.http.body_reader import BodyReader
from service.http.responses import json_response
from service.reload import ModelError, ReloadableModel
from service.schemas.problems import Problem


class ReloadEndpoint:
    """Answers requests to load the model that is on disk now, in all workers.

    Args:
        model: that answers.
        bodies: reads those of requests.
    """

    def __init__(self, model: ReloadableModel, bodies: BodyReader) -> None:
        self._model, self._bodies = model, bodies

    async def __call__(self, request: Request) -> Response:
        """Load the model, or keep the old one."""
        await self._bodies.read(request)
        try:
            model = await anyio.to_thread.run_sync(lambda: self._model.reload(tell=True))
        except ModelError as error:
            raise Problem("model-refused", f"the old model goes on answering: {error}") from error
        return json_response(json.dumps({"model": model}).encode())
