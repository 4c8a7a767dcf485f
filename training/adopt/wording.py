"""Wording that the errors and reports of adoption share."""

from collections.abc import Sequence

_SHOWN = 5


def counted(count: int, one: str, more: str) -> str:
    """Put a number before its noun, of which both forms are given."""
    return f"{count:,} {one if count == 1 else more}"


def first_of(names: Sequence[str]) -> str:
    """List the first five names, and say how many more there are; "none" without names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
