"""Feedback: the true class of a predicted image."""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from service.schemas.problems import invalid, short

_NAMED = 20  # classes that a message lists


class FeedbackRequest(BaseModel):
    """The true class, by `label` or `class_index`, of the image identified by `request_id` or `image_hash`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    request_id: Annotated[str, Field(description="X-Request-ID of the answer to a request with one image")] | None = (
        None
    )
    image_hash: (
        Annotated[
            str,
            StringConstraints(pattern="^[0-9a-f]{16}$"),
            Field(description="image_hash in the answer's preprocessing"),
        ]
        | None
    ) = None
    label: Annotated[str, Field(description="name of the class")] | None = None
    class_index: Annotated[int, Field(ge=0, description="index of the class")] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for one, other in (("request_id", "image_hash"), ("label", "class_index")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ValueError(f"must have either {one} or {other}")
        return self

    def class_of(self, classes: Sequence[str]) -> int:
        """Index of the true class in the model's classes.

        Raises:
            Problem: 422 for an unknown class.
        """
        if self.label is not None:
            if self.label not in classes:
                names = ", ".join(classes) if len(classes) <= _NAMED else f"the {len(classes)} classes in /card.json"
                raise invalid(("label", f"must be one of {names}, got {short(self.label)}"))
            return classes.index(self.label)
        index = self.class_index or 0
        if index >= len(classes):
            raise invalid(("class_index", f"must be 0..{len(classes) - 1}, got {index}"))
        return index
