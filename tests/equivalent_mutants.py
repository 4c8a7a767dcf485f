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


_CACHE = "how much is kept or done at once: it changes the time only"
_NEVER = "the two differ only for what never comes here"

EQUIVALENT = (
    Equivalent(
        "model/chain.py",
        "_CACHED_CHUNKS = 64  # of masks, one for each dropout layer and chunk of samples",
        None,
        _CACHE,
    ),
    Equivalent("model/dropout.py", "@lru_cache", "", _CACHE),
    Equivalent(
        "model/uncertainty.py",
        "_MAX_CHUNK_SIZE = 2**15  # float64 numbers that fit into a cache; "
        "the system maps larger arrays again for each call",
        None,
        _CACHE,
    ),
    Equivalent(
        "model/monte_carlo.py",
        "return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)",
        "return parts[0] if len(parts) <= 1 else torch.cat(parts, dim=dim)",
        _NEVER,
    ),
    Equivalent(
        "model/monte_carlo.py",
        "return self.predict(images_B).expand(samples, -1, -1)",
        "return self.predict(images_B).expand(samples, not 1, -1)",
        "no images are 0 images",
    ),
    Equivalent(
        "model/moments.py",
        "if not stage.relu and p == 0:",
        "if not stage.relu and p == -1:",
        "a short cut: the general way adds a source without variance",
    ),
    Equivalent(
        "model/moments.py",
        "engine = torch.quasirandom.SobolEngine(classes, scramble=True, seed=0)  # type: ignore[no-untyped-call]",
        "engine = torch.quasirandom.SobolEngine(classes, scramble=True, seed= 1)  # type: ignore[no-untyped-call]",
        "another seed's points are as good",
    ),
    Equivalent(
        "service/inference/preparation.py",
        "first = max(int(centre - 3 * stretch + 0.5), 0)",
        "first = max(int(centre - 4 * stretch + 0.5), 0)",
        "the kernel is 0 there",
    ),
    Equivalent(
        "service/inference/preparation.py",
        "last = min(int(centre + 3 * stretch + 0.5), side)",
        "last = min(int(centre + 4 * stretch + 0.5), side)",
        "the kernel is 0 there",
    ),
    Equivalent(
        "training/calibrate.py",
        "first = next(count for count in itertools.count(2) if _upper_bound(1, count) <= risk)",
        "first = next(count for count in itertools.count( 3) if _upper_bound(1, count) <= risk)",
        "of two answers with one error, no bound is below any risk",
    ),
)
