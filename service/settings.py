"""Every limit and switch of the service, read once from a mapping such as the environment."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "MCD_"


class SettingsError(ValueError):
    """A setting that can't be used; one line names variable, rule and value."""


class Settings(BaseModel):
    """Settings of one server; the field `workers` is the variable MCD_WORKERS, and so on."""

    model_config = ConfigDict(frozen=True)

    model: Annotated[str, Field(description="folder of an artifact, or bentoml:TAG; empty for the embedded one")] = ""
    workers: Annotated[int, Field(ge=1, description="worker processes")] = 1
    max_body_bytes: Annotated[int, Field(ge=1, description="largest request body")] = 10 * 2**20
    max_pixels: Annotated[int, Field(ge=1, description="largest width x height of an image file")] = 25_000_000
    max_images: Annotated[int, Field(ge=1, description="images of a request")] = 1000
    max_forward_passes: Annotated[int, Field(ge=1, description="images x samples of a request")] = 100_000
    max_seconds: Annotated[float, Field(gt=0, description="from a request's last byte to its answer")] = 30.0

    @classmethod
    def from_mapping(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings; what is missing or empty keeps its default, other variables are ignored.

        Raises:
            SettingsError: a value breaks its rule.
        """
        given = {name: environ.get(PREFIX + name.upper(), "").strip() for name in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in given.items() if value})
        except ValidationError as error:
            first = error.errors()[0]
            variable = PREFIX + str(first["loc"][0]).upper()
            raise SettingsError(f"{variable}: {first['msg']}, got {first['input']!r}") from error
