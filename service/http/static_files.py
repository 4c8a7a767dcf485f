"""The page under /ui: the files of `service/web`, read once; browsers ask whether theirs are still the same."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

ROOT = "/ui"
# Nothing from elsewhere, nothing inline, and no text that is taken for HTML or script.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

_FOLDER = Path(__file__).parents[1] / "web"
_MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_PAGES = {"index.html": ROOT, "card.html": f"{ROOT}/card"}


@dataclass(frozen=True)
class File:
    """A file as it is sent.

    Attributes:
        content: whole.
        media_type: by the file's ending; plain text for other endings.
        tag: quoted, the same for the same content, in all workers and after restarts.
    """

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> "File":
        """Take what is on disk."""
        content = path.read_bytes()
        tag = hashlib.blake2b(content, digest_size=12).hexdigest()
        return cls(content, _MEDIA_TYPES.get(path.suffix, "text/plain"), f'"{tag}"')

    def answer(self, request: Request) -> Response:
        """Send it, or tell that the browser's own copy is still the same (RFC 9110, 13.1.2)."""
        headers = {"ETag": self.tag, "Cache-Control": "no-cache"}
        known = re.findall(r'"[^"]*"|\*', request.headers.get("if-none-match", ""))
        if self.tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def read_files() -> dict[str, File]:
    """Read all files, by the path that each is found at."""
    found = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.is_file():
            name = path.relative_to(_FOLDER).as_posix()
            found[_PAGES.get(name, f"{ROOT}/{name}")] = File.read(path)
    return found


def without_slash() -> Response:
    """Send who asks for /ui/ to /ui, also where a proxy has put both into a folder."""
    return RedirectResponse(f"..{ROOT}", 308)
