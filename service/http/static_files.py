"""The web page under /ui: the files of `service/web`, and the example images of the model.

Browsers revalidate their cached copies.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from model.examples import FOLDER
from service.http.cached_file import NO_CACHE, send_file
from service.reload import ReloadableModel
from service.schemas.problems import Problem

ROOT, NAME = "/ui", "/ui/*"  # path of the page, and name of its files in metrics
# Content-Security-Policy: only our own files, nothing inline, no strings interpreted as HTML or script.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

_FOLDER = Path(__file__).parents[1] / "web"
PAGES = {ROOT: "index.html"}
EXAMPLES = f"{ROOT}/{FOLDER}/*"


def file_paths() -> dict[str, str]:
    """The URL path of each file, with its name in metrics."""
    files = {path.relative_to(_FOLDER).as_posix() for path in _FOLDER.rglob("*") if path.is_file()}
    paths = [*PAGES, f"{ROOT}/", *(f"{ROOT}/{name}" for name in sorted(files - set(PAGES.values())))]
    return {path: path if path == ROOT else NAME for path in (*paths, EXAMPLES)}


class PageFiles:
    """Endpoint that sends the page's files and the examples of the current model.

    Args:
        model: the model that answers.
    """

    def __init__(self, model: ReloadableModel) -> None:
        self._model = model
        self._files = StaticFiles(directory=_FOLDER)

    async def __call__(self, request: Request) -> Response:
        """Send a file, or 304 if the browser's cached copy is current (RFC 9110, 13.1.2)."""
        path = request.scope["path"]
        if path == f"{ROOT}/":  # a relative redirect also works behind a proxy's path prefix
            return RedirectResponse(f"..{ROOT}", 308)
        if path.startswith(EXAMPLES.removesuffix("*")):
            return self._example(path.removeprefix(f"{ROOT}/"), request)
        response = await self._files.get_response(PAGES.get(path) or path.removeprefix(f"{ROOT}/"), request.scope)
        response.headers["Cache-Control"] = NO_CACHE
        if response.headers.get("Content-Type") == "application/octet-stream":  # a licence
            response.headers["Content-Type"] = "text/plain; charset=utf-8"
        return response

    def _example(self, name: str, request: Request) -> Response:
        content = self._model.pipeline.examples.get(name)
        if content is None:
            raise Problem("not-found", "the model has no such example")
        return send_file(content, "image/png", request)
