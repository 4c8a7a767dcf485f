"""The parameters of requests, and their validation."""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from model.calibration import COVERAGES, RISKS, SetMethod
from model.novelty import FALSE_ALARM_RATES
from service.inference.decision import DecisionOptions
from service.inference.preparation import Invert
from service.schemas.problems import invalid, rule, short

MAX_SAMPLES = 1000
# Smaller than the 2**64 - 1 of model.masks.MAX_SEED: the bulk output stores seeds as signed 64-bit integers.
MAX_REQUEST_SEED = 2**63 - 1

_MIN_AUTO_WORK = 200  # masks
_MAX_NUMBER = 1e300  # can be converted to float without overflow
_WHOLE = r"[+-]?[0-9]{1,20}(\.0{1,20})?"
_DECIMAL = r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?"
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

RawParameters = Iterable[tuple[str, Any]]
RankBy = Literal["bald", "entropy", "margin", "least_confidence"]


def _whole_number(value: Any) -> Any:
    """Accept whole numbers, as JSON numbers or as plain decimal text, and nothing else that pydantic would convert."""
    if isinstance(value, str) and re.fullmatch(_WHOLE, value.strip(" ")):
        return int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"must be a whole number, got {short(value)}")


def _number(value: Any) -> Any:
    """Accept numbers, as JSON numbers or as plain decimal text."""
    if isinstance(value, str) and re.fullmatch(_DECIMAL, value.strip(" ")):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER:
        return float(value)
    raise ValueError(f"must be a number, got {short(value)}")


def _boolean(value: Any) -> Any:
    """Accept true and false, as JSON or as text."""
    if isinstance(value, str) and value.strip(" ").lower() in {*_TRUE, *_FALSE}:
        return value.strip(" ").lower() in _TRUE
    if isinstance(value, bool):
        return value
    raise ValueError(f"must be true or false, got {short(value)}")


def _samples(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    samples = _whole_number(value)
    if samples == 0 or 2 <= samples <= MAX_SAMPLES:
        return int(samples)
    reason = ": one mask has no spread" if samples == 1 else ""
    raise ValueError(f"must be 0, 2..{MAX_SAMPLES} or auto, got {samples}{reason}")


def _limit(value: Any) -> Any:
    return None if value is None else _whole_number(value)


def _one_of(levels: tuple[float, ...]) -> BeforeValidator:
    """Accept one of a few numbers, as a JSON number or as text."""
    by_text = {str(level): level for level in levels}

    def check(value: Any) -> float:
        number = by_text.get(value) if isinstance(value, str) else value
        if isinstance(number, bool) or number not in levels:
            raise ValueError(f"must be one of {', '.join(by_text)}, got {short(value)}")
        return float(number)

    return BeforeValidator(check, json_schema_input_type=Literal[levels + tuple(by_text)])


_WholeText = Annotated[str, StringConstraints(pattern=f"^{_WHOLE}$")]
_NumberText = Annotated[str, StringConstraints(pattern=f"^{_DECIMAL}$")]
_Samples = Annotated[
    int | Literal["auto"],
    Field(description="number of dropout masks: 0 for the eval-mode prediction, 2..1000, or auto"),
    BeforeValidator(
        _samples, json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_SAMPLES)] | Literal["auto"] | _WholeText
    ),
]
_IS_BOOLEAN = BeforeValidator(_boolean, json_schema_input_type=bool | Literal[("True", "False", *_TRUE, *_FALSE)])


class Sampling(BaseModel):
    """Parameters that determine how images are read and predicted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Annotated[
        Literal["masks", "moments"],
        Field(
            description="how to average over dropout masks: masks samples them, moments propagates mean and variance"
        ),
    ] = "masks"
    samples: _Samples = 0
    tolerance: Annotated[
        float,
        Field(gt=0, le=1, description="with samples=auto: sample until the top class has this standard error"),
        BeforeValidator(_number, json_schema_input_type=Annotated[float, Field(gt=0, le=1)] | _NumberText),
    ] = 0.005
    max_samples: Annotated[
        int,
        Field(ge=2, le=MAX_SAMPLES, description="with samples=auto: maximum number of masks"),
        BeforeValidator(_whole_number, json_schema_input_type=Annotated[int, Field(ge=2, le=MAX_SAMPLES)] | _WholeText),
    ] = MAX_SAMPLES
    seed: Annotated[
        int,
        Field(ge=0, le=MAX_REQUEST_SEED, description="random seed of the masks; the same seed gives the same answer"),
        BeforeValidator(
            _whole_number, json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_REQUEST_SEED)] | _WholeText
        ),
    ] = 0
    calibrated: Annotated[
        bool, Field(description="whether to return calibrated probabilities instead of raw ones"), _IS_BOOLEAN
    ] = True
    invert: Annotated[
        Invert, Field(description="swap dark and light; auto decides by the brightness of the border")
    ] = Invert.AUTO
    dtype: Annotated[
        Literal["uint8", "float"],
        Field(description="value range of arrays: integers 0..255 (uint8), or numbers in [0, 1] (float)"),
    ] = "uint8"

    @property
    def max_masks(self) -> int:
        """The maximum number of masks for each image."""
        if self.method == "moments":
            return 0
        return self.max_samples if self.samples == "auto" else self.samples

    @property
    def max_work(self) -> int:
        """The maximum cost for each image, in masks; samples=auto has a minimum, as it samples in several rounds."""
        return max(self.max_masks, _MIN_AUTO_WORK) if self.samples == "auto" else self.max_masks

    @property
    def has_spread(self) -> bool:
        """Whether predictions have an uncertainty over masks."""
        return self.method == "moments" or self.samples != 0

    @classmethod
    def gather(cls, *sources: RawParameters) -> Self:
        """Collect parameters from query, form and JSON, and validate them.

        Raises:
            Problem: 422 for an unknown name, an invalid value, two different values of one name, or parameters that
                can't be combined.
        """
        values: dict[str, Any] = {}
        for name, value in (pair for source in sources for pair in source):
            if name in values and _plain(values[name]) != _plain(value):
                raise invalid((name, f"given twice: {short(values[name])} and {short(value)}"))
            values[name] = value
        try:
            parameters = cls.model_validate(values)
        except ValidationError as error:
            raise invalid(*((_name(e["loc"]), cls._rule(e)) for e in error.errors())) from error
        if wrong := list(parameters.contradictions()):
            raise invalid(*wrong)
        return parameters

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield each parameter that contradicts another one, with the reason."""
        if self.method == "moments" and "samples" in self.model_fields_set and self.samples != 0:
            yield "samples", "must be left out with method=moments, which does not sample"
            return
        for name in ("tolerance", "max_samples"):
            if name in self.model_fields_set and self.samples != "auto":
                yield name, "can be used with samples=auto only"

    @classmethod
    def _rule(cls, error: ErrorDetails) -> str:
        if error["type"] == "extra_forbidden":
            return f"is unknown; valid names are {', '.join(['image', *cls.model_fields])}"
        return rule(error)


class Parameters(Sampling):
    """Parameters of predictions."""

    coverage: Annotated[
        float,
        Field(description="probability with which the prediction set contains the true class"),
        _one_of(COVERAGES),
    ] = 0.9
    set_method: Annotated[
        SetMethod,
        Field(
            description="method of the prediction set: lac gives the smallest sets, aps adapts to hard images, raps "
            "does so with smaller sets of many classes, mondrian has the coverage for each class"
        ),
    ] = "lac"
    max_risk: Annotated[
        float, Field(description="abstain so that at most this fraction of the answers is wrong"), _one_of(RISKS)
    ] = 0.05
    false_alarm_rate: Annotated[
        float,
        Field(description="fraction of in-distribution images that may be flagged as novel"),
        _one_of(FALSE_ALARM_RATES),
    ] = 0.01
    return_samples: Annotated[
        bool, Field(description="also return the uncalibrated class probabilities of each mask"), _IS_BOOLEAN
    ] = False
    return_pixels: Annotated[bool, Field(description="also return the network's input image"), _IS_BOOLEAN] = False
    top_k: Annotated[
        int | None,
        Field(ge=1, description="number of classes in the lists of an answer; by default all up to 20, else 10"),
        BeforeValidator(_limit, json_schema_input_type=Annotated[int, Field(ge=1)] | _WholeText | None),
    ] = None

    @property
    def max_work(self) -> int:
        """The maximum cost for each image, in masks; returning the probabilities of each mask doubles it."""
        return super().max_work + (self.max_masks if self.return_samples else 0)

    @property
    def decision_options(self) -> DecisionOptions:
        """The options of the decision."""
        return DecisionOptions(
            coverage=self.coverage,
            set_method=self.set_method,
            max_risk=self.max_risk,
            false_alarm_rate=self.false_alarm_rate,
        )

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield each parameter that contradicts another one, with the reason."""
        yield from super().contradictions()
        if self.return_samples and self.samples == 0:
            yield "return_samples", "needs samples: without masks there is nothing to return"


class RankParameters(Sampling):
    """Parameters of rankings."""

    samples: _Samples = 100
    by: Annotated[
        RankBy,
        Field(
            description="score of an image: mutual information (bald), entropy, a small margin between the two most "
            "probable classes, or least confidence"
        ),
    ] = "bald"
    limit: Annotated[
        int | None,
        Field(ge=1, description="maximum number of images to return; all by default"),
        BeforeValidator(_limit, json_schema_input_type=Annotated[int, Field(ge=1)] | _WholeText | None),
    ] = None

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield each parameter that contradicts another one, with the reason."""
        yield from super().contradictions()
        if self.by == "bald" and not self.has_spread:
            yield "samples", "must be 2 or more, or auto, for by=bald with method=masks"


def _plain(value: Any) -> Any:
    """A value in a normal form, in which different spellings are equal."""
    text = str(value).strip(" ").lower()
    return float(text) if re.fullmatch(_DECIMAL, text) else text


def _name(location: tuple[int | str, ...]) -> str:
    return short(location[0]) if location else "body"
