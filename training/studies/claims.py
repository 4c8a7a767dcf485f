"""Sentences and tables that state results."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.studies.intervals import Estimate


@dataclass(frozen=True)
class Claim:
    """A statement with its interval: a sentence, or a clause ("whether ...") if the question is open."""

    text: str
    is_open: bool = False


def claim(difference: Estimate, what: str, one: str, other: str, *, digits: int = 4) -> Claim:
    """State on which side of 0 a difference lies, or that the question is open.

    Args:
        difference: `one` minus `other`.
        what: name of the quantity, as in "test accuracy".
        one: as in "with dropout".
        other: as in "without".
        digits: number of decimals.
    """
    if difference.is_open:
        return Claim(f"whether {what} is higher {one} or {other} ({difference:{digits}})", is_open=True)
    size, word = (difference, "higher") if difference.mean > 0 else (-difference, "lower")
    return Claim(f"{what[0].upper()}{what[1:]} is {size:{digits}} {word} {one} than {other}.")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; all columns but the first are right-aligned."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
