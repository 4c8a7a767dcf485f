"""What requests and answers of the protocol look like."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _or_missing(kind: Any) -> BeforeValidator:
    """Take null for a missing object: many serializers write it for what isn't there."""
    return BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=kind | None)


class RequestInput(BaseModel):
    """A tensor that is sent: nested or flat data, or raw bytes behind the JSON, as many as `binary_data_size` says."""

    model_config = ConfigDict(strict=True)

    name: Literal["image"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=8)]
    datatype: Literal["UINT8", "FP32", "FP64", "BYTES"]
    parameters: Annotated[dict[str, Any], _or_missing(dict[str, Any])] = Field(default_factory=dict)
    data: list[Any] | None = None


class OutputParameters(BaseModel):
    """How an output is wanted: as raw bytes, or as so many of the highest classes."""

    model_config = ConfigDict(strict=True)

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0)] = 0


class RequestOutput(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: Annotated[OutputParameters, _or_missing(OutputParameters)] = Field(default_factory=OutputParameters)


class InferenceRequest(BaseModel):
    """What is sent; `parameters` are those of /predict, but `dtype`, `return_samples` and `return_pixels`."""

    model_config = ConfigDict(strict=True)

    id: str | None = None
    parameters: Annotated[dict[str, Any], _or_missing(dict[str, Any])] = Field(default_factory=dict)
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=1)]
    outputs: list[RequestOutput] | None = None


class ResponseOutput(BaseModel):
    """A tensor that is answered; without data its bytes follow the JSON, as many as `binary_data_size` says."""

    name: str
    shape: list[int]
    datatype: Literal["FP64", "INT64", "BOOL", "BYTES"]
    data: list[float | int | bool | str] | None = None
    parameters: dict[str, int] = Field(default_factory=dict)


class InferenceResponse(BaseModel):
    """What is answered."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]
