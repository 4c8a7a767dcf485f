"""Schemas of the protocol's requests and answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _or_missing(kind: Any) -> BeforeValidator:
    """Treat null as a missing object: many serializers write null for missing values."""
    return BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=kind | None)


class RequestInput(BaseModel):
    """An input tensor: nested or flat data, or `binary_data_size` raw bytes after the JSON."""

    model_config = ConfigDict(strict=True)

    name: Literal["image"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=8)]
    datatype: Literal["UINT8", "FP32", "FP64", "BYTES"]
    parameters: Annotated[dict[str, Any], _or_missing(dict[str, Any])] = Field(default_factory=dict)
    data: list[Any] | None = None


class OutputParameters(BaseModel):
    """Format of an output: as raw bytes, or as the `classification` highest classes."""

    model_config = ConfigDict(strict=True)

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0)] = 0


class RequestOutput(BaseModel):
    """A requested output."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: Annotated[OutputParameters, _or_missing(OutputParameters)] = Field(default_factory=OutputParameters)


class InferenceRequest(BaseModel):
    """An inference request.

    `parameters` are those of /predict except `dtype`, `return_samples`, `return_pixels` and `top_k`.
    """

    model_config = ConfigDict(strict=True)

    id: str | None = None
    parameters: Annotated[dict[str, Any], _or_missing(dict[str, Any])] = Field(default_factory=dict)
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=1)]
    outputs: list[RequestOutput] | None = None


class ResponseOutput(BaseModel):
    """An output tensor; without data, its `binary_data_size` raw bytes follow the JSON."""

    name: str
    shape: list[int]
    datatype: Literal["FP64", "INT64", "BOOL", "BYTES"]
    data: list[float | int | bool | str] | None = None
    parameters: dict[str, int] = Field(default_factory=dict)


class InferenceResponse(BaseModel):
    """An inference answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]
