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
_CHOICE = "another choice that is as good"
_NEVER = "the two differ only for what never comes here"

EQUIVALENT = (
    Equivalent("model/network/sequential.py", "if len(images_B) == 0:", "if len(images_B) <= 0:", _NEVER),
    Equivalent(
        "model/network/dropout.py",
        "keep = torch.rand(X.shape, generator=generator, device=X.device) >= p",
        "keep = torch.rand(X.shape, generator=generator, device=X.device) > p",
        _CHOICE,
    ),
    Equivalent("service/inference/arrays.py", "_MAX_NPY_HEADER = 1000  # bytes", None, _CHOICE),
    Equivalent("model/moments.py", "_MIN_LOGIT = -60.0", None, _CHOICE),
    Equivalent(
        "model/graph.py",
        "_CHUNK_BYTES = 2**25  # memory for the activations of the masks of one image that are computed at once",
        None,
        _CACHE,
    ),
    Equivalent(
        "model/graph.py", "_BATCH_BYTES = 2**22  # the same for several images together: what caches hold", None, _CACHE
    ),
    Equivalent(
        "model/graph.py",
        "_SMALL_MASKS = 2**16  # units and masks up to which factors are kept instead of bytes",
        None,
        _CACHE,
    ),
    Equivalent(
        "model/graph.py",
        "_CACHED_DRAWS = 64  # draws of masks that are kept, if the network has few sites",
        None,
        _CACHE,
    ),
    Equivalent(
        "model/graph.py", "_CACHED_BYTES = 2**25  # memory for masks that are kept for the next image", None, _CACHE
    ),
    Equivalent(
        "model/network/chain.py",
        "_CACHED_CHUNKS = 64  # of masks, one for each dropout layer and chunk of samples",
        None,
        _CACHE,
    ),
    Equivalent("model/masks.py", "if p == 1:", "if p >= 1:", _NEVER),
    Equivalent("model/network/dropout.py", "if p == 1:", "if p >= 1:", _NEVER),
    Equivalent(
        "model/network/sequential.py",
        "images = [images_B] if len(images_B) == 1 else torch.split(images_B, 1)",
        "images = [images_B] if len(images_B) == 0 else torch.split(images_B, 1)",
        "a short cut for one image",
    ),
    Equivalent("model/moments.py", "@lru_cache", "", _CACHE),
    Equivalent(
        "model/moments.py",
        "_INACTIVE_STANDARD_SCORE = 3.0  "
        "# omit units whose mean lies this far below 0: they add 0.0004 standard deviations",
        "_INACTIVE_STANDARD_SCORE = 4.0  "
        "# omit units whose mean lies this far below 0: they add 0.0004 standard deviations",
        _CHOICE,
    ),
    Equivalent(
        "model/network/moments.py",
        "engine = torch.quasirandom.SobolEngine(classes, scramble=True, seed=0)  # type: ignore[no-untyped-call]",
        "engine = torch.quasirandom.SobolEngine(classes, scramble=True, seed= -1)  # type: ignore[no-untyped-call]",
        _CHOICE,
    ),
    Equivalent(
        "model/moments.py",
        "return max(_QUADRATURE_POINTS, 4 * classes) // 2",
        "return max(_QUADRATURE_POINTS, 4 * classes) // 1",
        "more points are as good, and slower",
    ),
    Equivalent(
        "model/novelty.py",
        "if len(active) < len(matrix_FG) / 2:",
        None,
        "which of two ways of computing a product is taken: it changes the time only",
    ),
    Equivalent(
        "service/inference/preparation.py",
        "_BAND_PIXELS = 2**20  # processed at once, which bounds the memory needed",
        None,
        _CACHE,
    ),
    Equivalent(
        "service/inference/pillow_decoder.py",
        "_BAND_PIXELS = 2**20  # converted to grey at once, which bounds the memory needed",
        None,
        _CACHE,
    ),
    Equivalent(
        "service/inference/png.py",
        "or zlib.crc32(data[_HEADER.size - 4 : end]) != _CHECKSUM.unpack_from(data, end)[0]",
        "or zlib.crc32(data[_HEADER.size - 4 : end]) != _CHECKSUM.unpack_from(data, end)[ -1]",
        "there is one number",
    ),
    Equivalent(
        "service/inference/predictor.py",
        "for samples in (1000, 100) if self._graph.spec.mask_bytes <= _LIGHT_MASK_BYTES else (10,):",
        None,
        _CACHE,
    ),
    Equivalent(
        "service/inference/formats.py",
        "width, height = _WEBP_SIZES[name](bytes(content[:10]))",
        "width, height = _WEBP_SIZES[name](bytes(content[: 11]))",
        "readers take the first ten bytes",
    ),
    Equivalent(
        "service/inference/formats.py",
        "return max(_tiff_integer(content.removeprefix(_MULTI_PICTURE), _PICTURES) or 1, 1)",
        "return max(_tiff_integer(content.removeprefix(_MULTI_PICTURE), _PICTURES) or 1, 0)",
        _NEVER,
    ),
    Equivalent(
        "service/inference/formats.py",
        "return max(_tiff_integer(content.removeprefix(_MULTI_PICTURE), _PICTURES) or 1, 1)",
        "return max(_tiff_integer(content.removeprefix(_MULTI_PICTURE), _PICTURES) or 0, 1)",
        _NEVER,
    ),
    Equivalent(
        "service/monitoring/metrics.py",
        "_SCORES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)",
        None,
        _CHOICE,
    ),
    Equivalent(
        "service/monitoring/metrics.py",
        'self._histogram("batch_size_images", "Number of images of a request.", (1, 3, 10, 30, 100, 300, 1000))',
        None,
        _CHOICE,
    ),
    Equivalent(
        "training/calibrate.py",
        "return next(count for count in itertools.count(2) if _upper_bound(1, count) <= risk)",
        "return next(count for count in itertools.count(2) if _upper_bound(1, count) < risk)",
        "no bound equals a risk",
    ),
    Equivalent("model/masks.py", "@lru_cache", "", _CACHE),
    Equivalent(
        "model/uncertainty.py",
        "_MAX_CHUNK_SIZE = 2**15  # float64 numbers that fit into a cache; "
        "the system maps larger arrays again for each call",
        None,
        _CACHE,
    ),
    Equivalent("model/uncertainty.py", "@lru_cache", "", _CACHE),
    Equivalent(
        "model/uncertainty.py",
        "is_near = np.vdot(off_B1S, off_B1S) <= _ROW_SUM_TOLERANCE**2  # no entry is larger than the norm",
        "is_near = np.vdot(off_B1S, off_B1S) < _ROW_SUM_TOLERANCE**2  # no entry is larger than the norm",
        "a short cut: the next line finds the same",
    ),
    Equivalent(
        "model/network/sequential.py",
        "return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)",
        "return parts[0] if len(parts) <= 1 else torch.cat(parts, dim=dim)",
        _NEVER,
    ),
    Equivalent(
        "model/network/sequential.py",
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
        "model/network/moments.py",
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
        "return next(count for count in itertools.count(2) if _upper_bound(1, count) <= risk)",
        "return next(count for count in itertools.count( 3) if _upper_bound(1, count) <= risk)",
        "of two answers with one error, no bound is below any risk",
    ),
)
