"""All settings of the service, read once from a mapping such as the environment."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

PREFIX = "MCD_"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.\-_\[\]:]+")


class SettingsError(ValueError):
    """An invalid setting; the message has variable, rule and value in one line."""


class Settings(BaseModel):
    """Settings of a server. Each field is read from the variable MCD_ and its name, for example MCD_WORKERS."""

    model_config = ConfigDict(frozen=True)

    model: Annotated[str, Field(description="folder of an artifact, or bentoml:TAG; empty for the embedded one")] = ""
    workers: Annotated[int, Field(ge=1, description="worker processes")] = 1
    max_body_bytes: Annotated[int, Field(ge=1, description="largest request body")] = 10 * 2**20
    max_upload_seconds: Annotated[
        float, Field(gt=0, description="maximum seconds for a request's head, and again for its body")
    ] = 30.0
    max_buffered_bytes: Annotated[
        int, Field(ge=1, description="total bytes of request bodies that a worker receives at once")
    ] = 2**28
    max_headers: Annotated[int, Field(ge=1, description="maximum number of headers of a request")] = 100
    max_fields: Annotated[int, Field(ge=1, description="maximum number of non-file fields in a form")] = 20
    max_json_depth: Annotated[int, Field(ge=1, description="maximum nesting depth of JSON")] = 16
    max_query_bytes: Annotated[int, Field(ge=1, description="largest query of a request, in bytes")] = 2**13
    max_pixels: Annotated[
        int,
        Field(
            ge=1, description="maximum pixels (width x height) of an image file, and of all files of a request together"
        ),
    ] = 25_000_000
    max_aspect_ratio: Annotated[
        float, Field(ge=1, description="maximum ratio of an image file's longer side to its shorter one")
    ] = 1000.0
    max_images: Annotated[int, Field(ge=1, description="maximum number of images of a request")] = 1000
    max_forward_passes: Annotated[int, Field(ge=1, description="maximum images x samples of a request")] = 100_000
    max_seconds: Annotated[
        float, Field(gt=0, description="maximum seconds from a request's last byte to its answer")
    ] = 30.0

    max_in_flight: Annotated[int, Field(ge=1, description="maximum single predictions in progress in a worker")] = 16
    max_batches_in_flight: Annotated[
        int, Field(ge=1, description="maximum batches and rankings in progress in a worker")
    ] = 5
    api_keys: Annotated[str, Field(description="keys, separated by commas; empty: open to everybody", repr=False)] = ""
    api_keys_file: Annotated[str, Field(description="file with one key per line")] = ""
    cors_origins: Annotated[
        str, Field(description="origins whose pages may send requests, separated by commas, or *; empty: none")
    ] = ""
    metrics_need_key: Annotated[bool, Field(description="whether /metrics needs a key too")] = False
    admin_keys: Annotated[str, Field(description="keys for /admin/reload; empty: no such route", repr=False)] = ""
    admin_keys_file: Annotated[str, Field(description="file with one admin key per line")] = ""
    recent_predictions: Annotated[
        int, Field(ge=1, description="predictions that a worker keeps for drift and feedback")
    ] = 10_000
    recent_folder: Annotated[
        str, Field(description="folder that keeps them across restarts; empty: they are not kept")
    ] = ""
    drift_images: Annotated[int, Field(ge=1, description="recent images of a mode that drift is computed from")] = 1000
    adaptive: Annotated[bool, Field(description="whether prediction sets follow the feedback")] = False
    otlp_endpoint: Annotated[str, Field(description="URL that receives traces by OTLP over HTTP; empty: no traces")] = (
        ""
    )
    traced_ratio: Annotated[
        float, Field(ge=0, le=1, description="fraction of the requests without a client's trace that are traced")
    ] = 1.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="lowest level that is logged; info: one line for each request"),
    ] = "info"

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, listed: str) -> str:
        read_origins(listed)
        return listed

    @property
    def origins(self) -> list[str]:
        """Origins whose pages may read answers, or "*" for all."""
        return read_origins(self.cors_origins)

    def read_api_keys(self) -> list[str]:
        """Keys of the clients; empty if the service is open to everybody.

        Raises:
            OSError, UnicodeDecodeError: the file can't be read.
        """
        return _read_keys(self.api_keys, self.api_keys_file)

    def read_admin_keys(self) -> list[str]:
        """Keys of the administrators; errors as for `read_api_keys`."""
        return _read_keys(self.admin_keys, self.admin_keys_file)

    @classmethod
    def from_mapping(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings; missing or empty variables keep their defaults, other variables are ignored.

        Raises:
            SettingsError: a value is invalid.
        """
        values = {name: environ.get(PREFIX + name.upper(), "").strip() for name in cls.model_fields}
        try:
            settings = cls.model_validate({name: value for name, value in values.items() if value})
        except ValidationError as error:
            first = error.errors()[0]
            variable = PREFIX + str(first["loc"][0]).upper()
            raise SettingsError(f"{variable}: {first['msg']}, got {first['input']!r}") from error
        for name, read in (
            ("API_KEYS_FILE", settings.read_api_keys),
            ("ADMIN_KEYS_FILE", settings.read_admin_keys),
        ):
            try:
                read()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{PREFIX}{name}: can't be read ({error})") from error
        return settings


def read_origins(listed: str) -> list[str]:
    """Read origins separated by commas, or "*" for all.

    Raises:
        ValueError: an invalid origin.
    """
    origins = [origin.strip() for origin in listed.split(",") if origin.strip()]
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"an origin must be like https://example.org:8443, without a path, or *; got {origin}")
    return origins


def _read_keys(listed: str, file: str) -> list[str]:
    """Read keys from a list separated by commas, and from a file with one key per line."""
    lines = Path(file).read_text().splitlines() if file else []
    return [stripped for key in (*listed.split(","), *lines) if (stripped := key.strip())]
