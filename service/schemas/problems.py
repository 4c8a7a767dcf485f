"""Problem details (RFC 9457): the answers to requests that fail."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, to_json

from service.inference.errors import ImageError, TooManyPixelsError, UnknownFormatError

STATUSES = {
    "malformed-request": 400,
    "malformed-body": 400,
    "unauthorized": 401,
    "not-found": 404,
    "unknown-prediction": 404,
    "method-not-allowed": 405,
    "upload-too-slow": 408,
    "model-refused": 409,
    "body-too-large": 413,
    "image-too-large": 413,
    "too-many-images": 413,
    "too-much-work": 413,
    "uri-too-long": 414,
    "unsupported-encoding": 415,
    "unsupported-image-format": 415,
    "unsupported-media-type": 415,
    "invalid-body": 422,
    "invalid-image": 422,
    "invalid-parameter": 422,
    "headers-too-large": 431,
    "internal-error": 500,
    "overloaded": 503,
    "deadline-exceeded": 504,
}

_RULES = {"missing": "is missing", "extra_forbidden": "is unknown"}  # by pydantic's type of the error


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """A request that can't be answered, as problem details (RFC 9457).

    Args:
        kind: stable name of the problem, a key of `STATUSES`; the end of its `type`.
        detail: what is wrong with this request, and how to correct it.
        errors: one entry for each invalid parameter, with `parameter` and `detail`.
        headers: additional headers of the answer.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        errors: Iterable[dict[str, str]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = STATUSES[kind]
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
        """Encode as application/problem+json.

        Args:
            with_error: whether to add the member `error` of the Open Inference Protocol.
        """
        return to_json(self.document() | ({"error": self.detail} if with_error else {}))


def invalid(*errors: tuple[str, str]) -> Problem:
    """Make the problem of invalid parameters.

    Args:
        errors: for each invalid parameter, its name and what is wrong with its value.
    """
    listed = [{"parameter": name, "detail": detail} for name, detail in errors]
    detail = "; ".join(f"{error['parameter']} {error['detail']}" for error in listed)
    return Problem("invalid-parameter", detail, errors=listed)


def invalid_document(error: ValidationError) -> Problem:
    """Make the problem of an invalid JSON document, with each invalid place in it."""
    errors = error.errors()
    if errors[0]["type"] == "model_type" and not errors[0]["loc"]:
        return Problem("invalid-body", f"the JSON body must be an object, got {type(errors[0]['input']).__name__}")
    return invalid(*((".".join(map(str, one["loc"])) or "body", rule(one)) for one in errors))


def rule(error: ErrorDetails) -> str:
    """Say, after the name of a value, which rule it breaks; a rule for the whole document stands without the value."""
    if error["type"] in _RULES:
        return _RULES[error["type"]]
    message = error["msg"].removeprefix("Value error, ")
    if "got" in message or not error["loc"]:
        return message
    return f"{message[:1].lower()}{message[1:]}, got {short(error['input'])}"


def image_problem(error: ImageError) -> Problem:
    """Make the problem of an invalid image."""
    kind = "invalid-image"
    if isinstance(error, UnknownFormatError):
        kind = "unsupported-image-format"
    if isinstance(error, TooManyPixelsError):
        kind = "image-too-large"
    problem = Problem(kind, str(error))
    problem.__cause__ = error
    return problem


def internal_error(request_id: str) -> Problem:
    """Make the problem of an unexpected error, which the log describes."""
    return Problem("internal-error", f"an unexpected error; the service's log has details of request {request_id}")


def short(value: object) -> str:
    """A value as text, shortened to fit into a message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
