"""The web page of the model card under /ui/card: made from the card of the served model, with what it needs."""

from starlette.requests import Request
from starlette.responses import Response

from model.artifact import FAILURES
from model.card_page import STYLE, card_page
from service.http import static_files
from service.http.cached_file import send_file
from service.pipeline import Pipeline
from service.reload import ReloadableModel
from service.schemas.problems import Problem

PAGE = f"{static_files.ROOT}/card"
_STYLE, _FAILURES = f"{PAGE}.css", f"{static_files.ROOT}/{FAILURES}"
PATHS = (PAGE, _STYLE, _FAILURES)

# Relative to /ui/card, so that they also work behind a proxy's path prefix.
_HEAD = '<link rel="icon" href="icon.svg" type="image/svg+xml">\n<link rel="stylesheet" href="card.css">'
_HEADER = (
    '<nav aria-label="Documentation"><a href="../ui">Try it</a> <a href="../">API</a> '
    '<a href="../card.json">All figures as JSON</a></nav>'
)


class CardPage:
    """Endpoint that sends page, style sheet and pictures; browsers revalidate their cached copies.

    Args:
        model: the model that answers.
    """

    def __init__(self, model: ReloadableModel) -> None:
        self._model = model
        self._pipeline: Pipeline | None = None
        self._files: dict[str, tuple[bytes, str]] = {}

    async def __call__(self, request: Request) -> Response:
        """Send a file; 404 without pictures."""
        pipeline = self._model.pipeline
        if pipeline is not self._pipeline:
            self._files, self._pipeline = _files(pipeline), pipeline
        if request.scope["path"] not in self._files:
            raise Problem("not-found", "the served model has no pictures of known failures")
        return send_file(*self._files[request.scope["path"]], request)


def _files(pipeline: Pipeline) -> dict[str, tuple[bytes, str]]:
    """Content and media type by path."""
    page = card_page(pipeline.card, head=_HEAD, header=_HEADER)
    files = {
        PAGE: (page.encode(errors="replace"), "text/html"),
        _STYLE: (STYLE.encode(), "text/css"),
    }
    if pipeline.failures is not None:
        files[_FAILURES] = (pipeline.failures, "image/png")
    return files
