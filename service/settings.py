"""Every limit and switch of the service, read once from a mapping such as the environment."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

PREFIX = "MCD_"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.\-_\[\]:]+")


class SettingsError(ValueError):
    """A setting that can't be used; one line names variable, rule and value."""


class Settings(BaseModel):
    """Settings of one server; the field `workers` is the variable MCD_WORKERS, and so on."""

    model_config = ConfigDict(frozen=True)

    model: Annotated[str, Field(description="folder of an artifact, or bentoml:TAG; empty for the embedded one")] = ""
    workers: Annotated[int, Field(ge=1, description="worker processes")] = 1
    max_body_bytes: Annotated[int, Field(ge=1, description="largest request body")] = 10 * 2**20
    max_upload_seconds: Annotated[
        float, Field(gt=0, description="for a request's head, and from there to its last byte")
    ] = 30.0
    max_buffered_bytes: Annotated[int, Field(ge=1, description="bodies of a worker on their way in, together")] = 2**28
    max_headers: Annotated[int, Field(ge=1, description="headers of a request")] = 100
    max_fields: Annotated[int, Field(ge=1, description="parts of a form that are no images")] = 20
    max_json_depth: Annotated[int, Field(ge=1, description="lists and objects within one another")] = 16
    max_query_bytes: Annotated[int, Field(ge=1, description="query of a request")] = 2**13
    max_pixels: Annotated[
        int, Field(ge=1, description="largest width x height of an image file, and of all files of a request together")
    ] = 25_000_000
    max_aspect_ratio: Annotated[float, Field(ge=1, description="longer side of an image file over its shorter one")] = (
        1000.0
    )
    max_images: Annotated[int, Field(ge=1, description="images of a request")] = 1000
    max_forward_passes: Annotated[int, Field(ge=1, description="images x samples of a request")] = 100_000
    max_seconds: Annotated[float, Field(gt=0, description="from a request's last byte to its answer")] = 30.0

    max_in_flight: Annotated[int, Field(ge=1, description="single predictions of a worker that are in work")] = 16
    max_batches_in_flight: Annotated[int, Field(ge=1, description="batches and rankings of a worker, likewise")] = 5
    api_keys: Annotated[str, Field(description="keys with commas between; none: open to all", repr=False)] = ""
    api_keys_file: Annotated[str, Field(description="file with a key a line")] = ""
    cors_origins: Annotated[
        str, Field(description="origins whose pages may ask, with commas between, or *; empty: none")
    ] = ""
    metrics_need_key: Annotated[bool, Field(description="whether /metrics needs a key too")] = False
    admin_keys: Annotated[str, Field(description="keys for /admin/reload; none: it isn't there", repr=False)] = ""
    admin_keys_file: Annotated[str, Field(description="file with such a key a line")] = ""
    recent_predictions: Annotated[int, Field(ge=1, description="predictions a worker keeps for drift, feedback")] = (
        10_000
    )
    recent_folder: Annotated[str, Field(description="where they are kept over restarts; empty: not at all")] = ""
    drift_images: Annotated[int, Field(ge=1, description="newest images of a mode that drift is told from")] = 1000
    otlp_endpoint: Annotated[str, Field(description="URL that takes traces by OTLP over HTTP; empty: no traces")] = ""
    traced_ratio: Annotated[
        float, Field(ge=0, le=1, description="part of the requests that is traced if no client traces them")
    ] = 1.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="info: a line for each request")
    ] = "info"

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, listed: str) -> str:
        read_origins(listed)
        return listed

    @property
    def origins(self) -> list[str]:
        """Those that may read answers, or "*" for any."""
        return read_origins(self.cors_origins)

    def read_api_keys(self) -> list[str]:
        """Keys that open what is not open to all.

        Raises:
            OSError, UnicodeDecodeError: the file can't be read.
        """
        return _read_keys(self.api_keys, self.api_keys_file)

    def read_admin_keys(self) -> list[str]:
        """Keys that open the administration; errors as for `read_api_keys`."""
        return _read_keys(self.admin_keys, self.admin_keys_file)

    @classmethod
    def from_mapping(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings; what is missing or empty keeps its default, other variables are ignored.

        Raises:
            SettingsError: a value breaks its rule.
        """
        given = {name: environ.get(PREFIX + name.upper(), "").strip() for name in cls.model_fields}
        try:
            settings = cls.model_validate({name: value for name, value in given.items() if value})
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
    """Read origins with commas between, or "*" for any.

    Raises:
        ValueError: an invalid origin.
    """
    origins = [origin.strip() for origin in listed.split(",") if origin.strip()]
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"an origin is like https://example.org:8443, without a path, or *; got {origin}")
    return origins


def _read_keys(listed: str, file: str) -> list[str]:
    """Take keys from a list with commas, and from a file with one key a line."""
    lines = Path(file).read_text().splitlines() if file else []
    return [stripped for key in (*listed.split(","), *lines) if (stripped := key.strip())]
