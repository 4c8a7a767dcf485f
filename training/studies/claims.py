"""What numbers say, in words and tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.studies.intervals import Estimate


@dataclass(frozen=True)
class Claim:
    """What numbers say, with their interval: a sentence, or, if it is open, what isn't known ("whether ...")."""

    text: str
    is_open: bool = False


def claim(found: Estimate, what: str, one: str, other: str, *, digits: int = 4) -> Claim:
    """Say on which side of 0 a difference lies, or that this is open.

    Args:
        found: the difference, `one` less `other`.
        what: the number that differs, as in "test accuracy".
        one: as in "with dropout".
        other: as in "without".
        digits: behind the point.
    """
    if found.is_open:
        return Claim(f"whether {what} is higher {one} or {other} ({found:{digits}})", is_open=True)
    size, word = (found, "higher") if found.mean > 0 else (-found, "lower")
    return Claim(f"{what[0].upper()}{what[1:]} is {size:{digits}} {word} {one} than {other}.")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; numbers to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
