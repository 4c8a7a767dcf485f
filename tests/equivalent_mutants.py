"""Mutants that no test can tell from the code, or should: each with its reason."""

from pathlib import Path
from typing import NamedTuple


class Equivalent(NamedTuple):
    """A rule that excludes mutants.

    Attributes:
        path: of the file.
        line: the whole line, without indentation.
        becomes: what the line becomes, or None for any change of it; an empty text for a line that goes.
        reason: why the behaviour stays.
    """

    path: str
    line: str
    becomes: str | None
    reason: str

    def excludes(self, path: str, before: str, after: str) -> bool:
        """Whether the rule is for this change."""
        return (self.path, self.line) == (path, before) and self.becomes in {None, after}

    def is_current(self, root: Path) -> bool:
        """Whether the line is still there."""
        path = root / self.path
        return path.exists() and self.line in map(str.strip, path.read_text().splitlines())


_CACHE = "size of a cache: it changes the time only"

EQUIVALENT = (
    Equivalent(
        "model/chain.py", "_CACHED_CHUNKS = 64  # of masks, for each dropout layer and chunk of samples", None, _CACHE
    ),
)
