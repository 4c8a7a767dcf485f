"""What is answered to a request that can't be: problem details (RFC 9457)."""

from collections.abc import Iterable
from typing import Any

from pydantic_core import to_json


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """A request that can't be answered, as problem details (RFC 9457).

    Args:
        status: HTTP status.
        kind: stable name of the problem, the end of its `type`.
        detail: what is wrong with this request and what to do.
        errors: one entry for each parameter at fault, with `parameter` and `detail`.
        headers: to send with the answer.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Iterable[dict[str, str]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = list(errors)
        self.headers = headers or {}

    def document(self) -> dict[str, Any]:
        """Problem details, for JSON."""
        document = {
            "type": f"urn:mcd:problem:{self.kind}",
            "title": self.kind.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }
        return document | ({"errors": self.errors} if self.errors else {})

    def body(self, *, with_error: bool = False) -> bytes:
        """Encode as application/problem+json; with the member `error` that the Open Inference Protocol asks for."""
        return to_json(self.document() | ({"error": self.detail} if with_error else {}))


def invalid(*errors: tuple[str, str]) -> Problem:
    """Refuse parameters: each name with what is wrong about its value."""
    listed = [{"parameter": name, "detail": detail} for name, detail in errors]
    detail = "; ".join(f"{error['parameter']} {error['detail']}" for error in listed)
    return Problem(422, "invalid-parameter", detail, errors=listed)


def short(value: object) -> str:
    """What was given, cut to what fits into a message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
