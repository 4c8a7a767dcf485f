"""Parses request bodies of all supported media types into images and fields."""

import base64
import binascii
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from model.input_spec import InputSpec
from service.inference.arrays import read_npy_shape
from service.inference.formats import is_image_file
from service.inference.pixels import Pixels
from service.inference.upload import RawImage
from service.schemas.parameters import RawParameters
from service.schemas.problems import Problem, invalid, short
from service.settings import Settings

FORM, JSON, NPY = "multipart/form-data", "application/json", "application/x-npy"
FILES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")
_BYTES = ("application/octet-stream", "binary/octet-stream")  # the second is S3's
# No media type, and the one that curl --data-binary sends by default.
_UNTYPED = ("", "application/x-www-form-urlencoded")

_CONTAINERS = {list, dict}
_STANDARD_ALPHABET = str.maketrans("-_", "+/")
_BYTE_ORDER_MARK, _WIDE_BYTE_ORDER_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_EXTRA_NAMES = 3  # for each image
_EXTRA_VALUES = 1000  # values and names that a JSON document may have in addition to pixels


@dataclass(frozen=True)
class ParsedBody:
    """The content of a body: images in order, and the other fields."""

    images: list[RawImage | Problem]
    fields: RawParameters = ()


def read_one(content_type: str, body: bytes, limits: Settings, spec: InputSpec) -> ParsedBody:
    """Read a body with exactly one image, whose field is called `image`.

    Args:
        content_type: the header.
        body: the complete body.
        limits: limits on forms and JSON.
        spec: what the network takes.

    Raises:
        Problem: 400 for a body that does not match its media type, 415 for an unsupported media type, 422 for an
            invalid image, or for no image or several.
    """
    content = _read(content_type, body, ("image",), limits, spec)
    if len(content.images) != 1:
        raise (
            missing_image()
            if not content.images
            else invalid(("image", "must be one image; send several to /predict_batch"))
        )
    return content


def read_many(content_type: str, body: bytes, limits: Settings, spec: InputSpec) -> ParsedBody:
    """Read a body with one or more images, whose field is called `image` or `images`.

    A `Problem` takes the place of an invalid image.

    Raises:
        Problem: as for `read_one`; 422 for no image.
    """
    content = _read(content_type, body, ("images", "image"), limits, spec)
    if not content.images:
        raise invalid(("images", "are missing: send files in a form, a JSON list, or an .npy body"))
    return content


def missing_image() -> Problem:
    """Problem of a request without an image; lists the ways to send one."""
    return invalid(("image", "is missing: send a form field, a raw PNG, JPEG or WebP body, or JSON"))


def _read(content_type: str, body: bytes, names: tuple[str, ...], limits: Settings, spec: InputSpec) -> ParsedBody:
    kind, options = parse_options_header(content_type)
    match kind.decode("latin-1"):
        case "multipart/form-data":
            return _read_form(options.get(b"boundary", b""), body, names, limits)
        case other if other in {"application/json", "text/json"} or other.endswith("+json"):
            return _read_json(body, names, limits, spec)
        case "application/x-npy":
            return ParsedBody(list(_read_npy(body, spec)))
        case other if other.startswith("image/") or other in _BYTES or other in _UNTYPED:
            return ParsedBody([body] if body else [])  # the format follows from the bytes
        case other:
            supported = ", ".join((FORM, JSON, NPY, *FILES))
            raise Problem("unsupported-media-type", f"send one of {supported}, not {other[:100]}")


def _read_form(boundary: bytes, body: bytes, names: tuple[str, ...], limits: Settings) -> ParsedBody:
    form = _Form(names, limits)
    if not body.startswith(b"--" + boundary):  # a preamble (RFC 2046, 5.1.1)
        body = body[body.find(b"\r\n--" + boundary) + 2 :]
    try:
        config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = FormParser(FORM, form.on_field, form.on_file, form.on_end, boundary=boundary, config=config)
        parser.write(body)
        parser.finalize()
        if not form.ended:
            raise FormParserError("it ends before its last boundary")
    except (FormParserError, ValueError) as error:
        raise Problem("malformed-body", f"the body is not multipart/form-data: {error}") from error
    return ParsedBody(form.images, form.fields)


class _Form:
    """Collects the parts of a form."""

    def __init__(self, names: tuple[str, ...], limits: Settings) -> None:
        self._names, self._limits = names, limits
        self.images: list[RawImage | Problem] = []
        self.fields: list[tuple[str, str]] = []
        self.ended = False

    def on_file(self, file: File) -> None:
        name = _name(file.field_name)
        if name not in self._names:
            self._add_field(name, _text(file.file_name))  # parameter validation refuses the unknown name
        else:
            file.file_object.seek(0)
            self._add_image(file.file_object.read())

    def on_field(self, field: Field) -> None:
        name, value = _name(field.field_name), field.value or b""
        if name not in self._names:
            self._add_field(name, _text(value))
        elif is_image_file(value):  # a file part without a file name
            self._add_image(value)
        else:
            raise invalid((name, "must be a file, as curl -F image=@boot.png sends it"))

    def on_end(self) -> None:
        self.ended = True

    def _add_image(self, data: bytes) -> None:
        if len(self.images) == self._limits.max_images:
            raise FormParserError(f"it has more than {self._limits.max_images} files")
        self.images.append(data)

    def _add_field(self, name: str, value: str) -> None:
        if len(self.fields) == self._limits.max_fields:
            raise FormParserError(f"it has more than {self._limits.max_fields} fields")
        self.fields.append((name, value))


def _name(field_name: bytes | None) -> str:
    """The name of a part; some clients add "[]" to names that occur several times."""
    return _text(field_name).removesuffix("[]")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8")


def parse_json(body: bytes, limits: Settings, spec: InputSpec) -> Any:
    """Read JSON, in a time bounded by the size of the largest valid request.

    Args:
        body: the complete body.
        limits: limits on images.
        spec: what the network takes.

    Raises:
        Problem: 400 for invalid JSON, or for deeper nesting or more lists and names than images can need; 413 for more
            values than images can need.
    """
    commas, names_and_lists = body.count(b","), sum(map(body.count, (b"[", b"{", b":")))
    if names_and_lists > limits.max_images * (spec.lists + _EXTRA_NAMES) + _EXTRA_VALUES:
        raise Problem("malformed-body", f"the JSON has more lists and names than {limits.max_images} images need")
    if commas > limits.max_images * spec.values + _EXTRA_VALUES:
        raise Problem("body-too-large", f"the JSON has more values than {limits.max_images} images need")
    body = body.removeprefix(_BYTE_ORDER_MARK)  # receivers may ignore it (RFC 8259, 8.1)
    if body[:2] in _WIDE_BYTE_ORDER_MARKS or b"\0" in body[:4]:
        raise Problem("malformed-body", "the body is not JSON in UTF-8: it looks like UTF-16 or UTF-32")
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Problem("malformed-body", f"the body is not JSON: {error}") from error
    names = 0
    level: list[Any] = [[document]]
    for _ in range(limits.max_json_depth + 1):
        names += sum(len(one) for one in level if type(one) is dict)
        level = [
            value
            for one in level
            for value in (one.values() if type(one) is dict else one)
            if type(value) in _CONTAINERS  # twice as fast as isinstance, for up to a million values
        ]
        if not level:
            if names < body.count(b":"):  # the other colons are in strings, or a name occurs twice
                json.loads(body, object_pairs_hook=_check_names)
            return document
    raise Problem("malformed-body", f"the JSON is nested deeper than {limits.max_json_depth}")


def _check_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object in which a name occurs twice with different values."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members and members[name] != value:
            raise invalid((short(name), f"given twice: {short(members[name])} and {short(value)}"))
        members[name] = value
    return members


def _read_json(body: bytes, names: tuple[str, ...], limits: Settings, spec: InputSpec) -> ParsedBody:
    document = parse_json(body, limits, spec)
    several = len(names) > 1
    if several and isinstance(document, list):
        document = {"images": document}
    if not isinstance(document, dict):
        expected = "an object or a list" if several else "an object"
        raise Problem("invalid-body", f"the JSON body must be {expected}, got {type(document).__name__}")
    fields = dict(document)
    if not several:
        return ParsedBody([image_of(fields.pop("image"))] if "image" in fields else [], fields.items())
    values = fields.pop("images", [])
    if not isinstance(values, list):
        raise invalid(("images", f"must be a list, got {type(values).__name__}"))
    check_count(len(values), limits)
    return ParsedBody(images_of(values), fields.items())


def image_of(value: Any) -> RawImage:
    """Convert a JSON value into an image: base64 text, or an array.

    Raises:
        Problem: 422 for any other value.
    """
    if isinstance(value, str):
        return _from_base64(value)
    if isinstance(value, list):
        return value
    raise invalid(("image", f"must be base64 text or an array, got {type(value).__name__}"))


def images_of(values: list[Any]) -> list[RawImage | Problem]:
    """Convert JSON values into images; a `Problem` takes the place of an invalid one."""
    images: list[RawImage | Problem] = []
    for value in values:
        try:
            images.append(image_of(value))
        except Problem as problem:
            images.append(problem)
    return images


def check_count(images: int, limits: Settings) -> None:
    """Refuse a request with too many images before any of them is read.

    Raises:
        Problem: 413 for too many images.
    """
    if images > limits.max_images:
        raise Problem("too-many-images", f"a request may have at most {limits.max_images} images, got {images}")


def _from_base64(text: str) -> bytes:
    """Decode base64 of either alphabet, with or without padding (RFC 4648, 3.2 and 5), also in a data URL."""
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise invalid(("image", "is a data URL that is not base64"))
    encoded = "".join(text.split()).translate(_STANDARD_ALPHABET)
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(("image", f"is not base64: {error}")) from error


def _read_npy(body: bytes, spec: InputSpec) -> Iterable[Pixels]:
    """Read several uint8 images, or one, after checking the header."""
    file = io.BytesIO(body)
    try:
        shape = read_npy_shape(file, spec)
    except ValueError as error:
        raise Problem("malformed-body", f"the body is not an .npy file: {error}") from error
    except TypeError as error:
        raise Problem("invalid-body", f"the .npy body must have {error}") from error
    data = body[file.tell() :]
    expected = (spec.count(shape) or 0) * spec.values
    if len(data) != expected:
        raise Problem("malformed-body", f"the .npy body must have {expected} bytes of data, got {len(data)}")
    return spec.as_pixels(np.frombuffer(data, np.uint8), shape)
