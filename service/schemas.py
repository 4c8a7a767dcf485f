"""What comes in and what goes out: parameters, answers, problems."""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from model import Moments, Uncertainty
from model.calibration import COVERAGES, RISKS, Estimator, SetMethod
from model.novelty import FALSE_ALARM_RATES
from service.decision import Decision, Demands, Reason
from service.images import Invert, Prepared
from service.predictor import Mode, Prediction

MAX_SAMPLES = 1000
MAX_SEED = 2**63 - 1

Given = Iterable[tuple[str, Any]]


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

    def body(self) -> bytes:
        """Encode as application/problem+json."""
        document = {
            "type": f"urn:mcd:problem:{self.kind}",
            "title": self.kind.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }
        return to_json(document | ({"errors": self.errors} if self.errors else {}))


def _whole_number(value: Any) -> Any:
    """Let integers through, as JSON numbers or as plain decimal digits; nothing else that pydantic would convert."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"must be a whole number, got {_short(value)}")


def _samples(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    samples = _whole_number(value)
    if samples == 0 or 2 <= samples <= MAX_SAMPLES:
        return int(samples)
    why = ": one mask has no spread" if samples == 1 else ""
    raise ValueError(f"must be 0, 2..{MAX_SAMPLES} or auto, got {samples}{why}")


def _one_of(levels: tuple[float, ...]) -> BeforeValidator:
    """Let one of a few numbers through, as JSON or as text."""

    def check(value: Any) -> float:
        try:
            number = None if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = None
        if number not in levels:
            raise ValueError(f"must be one of {', '.join(map(str, levels))}, got {_short(value)}")
        return number

    return BeforeValidator(check, json_schema_input_type=Literal[levels])


class Parameters(BaseModel):
    """What a client may ask for beside the image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Annotated[
        Literal["masks", "moments"],
        Field(description="how dropout is taken into account: by sampled masks, or by moments without sampling"),
    ] = "masks"
    samples: Annotated[
        int | Literal["auto"],
        Field(description="dropout masks to average: 0 for the eval-mode prediction, 2..1000, or auto"),
        BeforeValidator(_samples),
    ] = 0
    tolerance: Annotated[
        float, Field(gt=0, le=1, description="with samples=auto: standard error of the top class that suffices")
    ] = 0.005
    max_samples: Annotated[
        int,
        Field(ge=2, le=MAX_SAMPLES, description="with samples=auto: where to stop in any case"),
        BeforeValidator(_whole_number),
    ] = MAX_SAMPLES
    seed: Annotated[
        int,
        Field(ge=0, le=MAX_SEED, description="seed of the masks; the same seed gives the same answer"),
        BeforeValidator(_whole_number),
    ] = 0
    coverage: Annotated[
        float, Field(description="how often the prediction set shall hold the true class"), _one_of(COVERAGES)
    ] = 0.9
    set_method: Annotated[
        SetMethod, Field(description="of the prediction set: lac makes the smallest ones, aps adapts to hard images")
    ] = "lac"
    max_risk: Annotated[
        float, Field(description="abstain, so that at most this part of the answers is wrong"), _one_of(RISKS)
    ] = 0.05
    false_alarm_rate: Annotated[
        float, Field(description="part of ordinary images that may be taken for novel"), _one_of(FALSE_ALARM_RATES)
    ] = 0.01
    calibrated: Annotated[bool, Field(description="false for the raw mean probabilities")] = True
    invert: Annotated[Invert, Field(description="swap dark and light; auto decides by the border")] = Invert.AUTO
    dtype: Annotated[
        Literal["uint8", "float"], Field(description="values of an array: integers 0..255, or numbers in [0, 1]")
    ] = "uint8"

    @property
    def demands(self) -> Demands:
        """Those that decide on a prediction."""
        return Demands(
            coverage=self.coverage,
            set_method=self.set_method,
            max_risk=self.max_risk,
            false_alarm_rate=self.false_alarm_rate,
        )

    @classmethod
    def gather(cls, *sources: Given) -> Self:
        """Make parameters of the names and values found in query, form and JSON.

        Raises:
            Problem: 422 for an unknown name, a value that breaks its rule, two different values of one name, or values
                that don't go together.
        """
        values: dict[str, Any] = {}
        for name, value in (pair for source in sources for pair in source):
            if name in values and str(values[name]) != str(value):
                raise _invalid([(name, f"given twice: {_short(values[name])} and {_short(value)}")])
            values[name] = value
        try:
            parameters = cls.model_validate(values)
        except ValidationError as error:
            raise _invalid([(_name(e["loc"]), _rule(dict(e))) for e in error.errors()]) from error
        if parameters.method == "moments" and parameters.samples != 0:
            raise _invalid([("samples", "must be left out with method=moments, which draws none")])
        needless = [name for name in ("tolerance", "max_samples") if name in values and parameters.samples != "auto"]
        if needless:
            raise _invalid([(name, "goes with samples=auto only") for name in needless])
        return parameters


def _invalid(errors: Iterable[tuple[str, str]]) -> Problem:
    listed = [{"parameter": name, "detail": detail} for name, detail in errors]
    detail = "; ".join(f"{error['parameter']} {error['detail']}" for error in listed)
    return Problem(422, "invalid-parameter", detail, errors=listed)


def _name(location: tuple[int | str, ...]) -> str:
    return _short(location[0]) if location else "body"


def _rule(error: dict[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return f"is unknown; known are {', '.join(['image', *Parameters.model_fields])}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if "got" in message else f"{message[:1].lower()}{message[1:]}, got {_short(error['input'])}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


@dataclass(frozen=True)
class Call:
    """One prediction asked for: an image file's bytes or an array of values, and the parameters."""

    image: bytes | list[Any]
    parameters: Parameters = field(default_factory=Parameters)


def call_from_json(body: bytes, query: Given) -> Call:
    """Read `{"image": base64 or array, "samples": ..., ...}`.

    Raises:
        Problem: 400 if this is no JSON, 422 if it is not such an object.
    """
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(400, "malformed-body", f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Problem(422, "invalid-body", f"the JSON body must be an object, got {type(document).__name__}")
    if "image" not in document:
        raise missing_image()
    return call_from_values(document.pop("image"), query, document.items())


def call_from_values(image: Any, *sources: Given) -> Call:
    """Make a call of a decoded JSON image, base64 or array, and parameters.

    Raises:
        Problem: 422 for an image or parameters of another kind.
    """
    parameters = Parameters.gather(*sources)
    if isinstance(image, str):
        return Call(_from_base64(image), parameters)
    if isinstance(image, list):
        return Call(image, parameters)
    raise _invalid([("image", f"must be base64 text or an array, got {type(image).__name__}")])


def missing_image() -> Problem:
    """Name the ways to send an image."""
    return _invalid([("image", "is missing: send a form field, a raw PNG, JPEG or WebP body, or JSON")])


def _from_base64(text: str) -> bytes:
    encoded = text.partition("base64,")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid([("image", f"is not base64: {error}")]) from error


class UncertaintyAnswer(BaseModel):
    """The spread over the dropout masks; entropies in nats, the lists in class order.

    There is no standard error where nothing was sampled.
    """

    variance: list[float]
    standard_error: list[float] | None
    predictive_entropy: float
    expected_entropy: float
    mutual_information: float


class PreprocessingAnswer(BaseModel):
    """What was done to the image before the network saw it."""

    source: str
    width: int
    height: int
    inverted: bool
    steps: list[str]


class CalibrationAnswer(BaseModel):
    """What probabilities, prediction set and abstention were calibrated for; 0 samples where nothing is sampled."""

    estimator: Estimator
    samples: int


class NoveltyAnswer(BaseModel):
    """How unlike the training's the image is; flagged above the threshold, null if that is not calibrated."""

    score: float
    threshold: float | None
    flagged: bool


class Answer(BaseModel):
    """A prediction; `uncertainty` is null in eval mode, and null is what the model was not calibrated for."""

    label: str
    class_index: int
    confidence: float
    probabilities: list[float]
    mode: Mode
    samples: int
    seed: int
    uncertainty: UncertaintyAnswer | None
    calibrated: bool
    calibration: CalibrationAnswer | None
    prediction_set: list[str] | None
    coverage: float
    abstain: bool
    abstain_reason: Reason | None
    abstain_threshold: float | None
    max_risk: float
    novelty: NoveltyAnswer | None
    preprocessing: PreprocessingAnswer
    warnings: list[str]

    @classmethod
    def of(cls, prediction: Prediction, decision: Decision, prepared: Prepared, parameters: Parameters) -> Self:
        """Put together what the stages found."""
        width, height = prepared.size
        calibrated = decision.probabilities if parameters.calibrated else None
        probabilities = prediction.probabilities if calibrated is None else calibrated
        return cls(
            label=prediction.label,
            class_index=prediction.class_index,
            confidence=probabilities[prediction.class_index],
            probabilities=probabilities,
            mode=prediction.mode,
            samples=prediction.samples,
            seed=parameters.seed,
            uncertainty=_uncertainty_answer(prediction.uncertainty),
            calibrated=calibrated is not None,
            calibration=_calibration_answer(decision),
            prediction_set=decision.prediction_set,
            coverage=parameters.coverage,
            abstain=decision.reason is not None,
            abstain_reason=decision.reason,
            abstain_threshold=decision.least_confidence,
            max_risk=parameters.max_risk,
            novelty=_novelty_answer(decision),
            preprocessing=PreprocessingAnswer(
                source=prepared.source,
                width=width,
                height=height,
                inverted=prepared.inverted,
                steps=list(prepared.steps),
            ),
            warnings=[*prepared.warnings, *prediction.warnings, *decision.warnings],
        )


def _calibration_answer(decision: Decision) -> CalibrationAnswer | None:
    found = decision.calibration
    return None if found is None else CalibrationAnswer(estimator=found.estimator, samples=found.samples)


def _novelty_answer(decision: Decision) -> NoveltyAnswer | None:
    found = decision.novelty
    if found is None:
        return None
    return NoveltyAnswer(score=found.score, threshold=found.threshold, flagged=found.flagged)


def _uncertainty_answer(found: Uncertainty | Moments | None) -> UncertaintyAnswer | None:
    if found is None:
        return None
    return UncertaintyAnswer(
        variance=found.variance.tolist()[0],
        standard_error=None if isinstance(found, Moments) else found.standard_error.tolist()[0],
        predictive_entropy=found.predictive_entropy.item(),
        expected_entropy=found.expected_entropy.item(),
        mutual_information=found.mutual_information.item(),
    )
