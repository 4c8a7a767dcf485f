"""A compiled network with dropout, run by ONNX Runtime: its masks are inputs of the graph."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.special import log_softmax, logsumexp

from model.adaptive import sample_until
from model.chain import as_vectors
from model.masks import MaskRange, Masks, check_sampling, keep_masks, member_samples, survivor_scale
from model.session import open_session
from model.uncertainty import Uncertainty, summarize

Array = np.ndarray

MAIN, PREFIX = "network.onnx", "prefix.onnx"
_CHUNK_BYTES = 2**25  # memory for the activations of the masks of one image that are computed at once
_BATCH_BYTES = 2**22  # the same for several images together: what caches hold
_SMALL_MASKS = 2**16  # units and masks up to which factors are kept instead of bytes
_CACHED_DRAWS = 64  # draws of masks that are kept, if the network has few sites
_CACHED_BYTES = 2**25  # memory for masks that are kept for the next image


class Site(NamedTuple):
    """One use of dropout in a network.

    Attributes:
        name: path of the module that uses dropout; empty for the network itself.
        p: probability of dropping a unit.
        shape: shape of one mask.
    """

    name: str
    p: float
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GraphSpec:
    """What a graph takes, and how it is run.

    Attributes:
        image: shape of an image, (C, H, W).
        classes: number K of classes.
        sites: the uses of dropout, in the order of execution.
        batched: whether several images can be computed together.
        mask_bytes: memory that the masked part needs for each mask.
        shared: fraction of the operations of an eval-mode forward pass that is done once for all masks.
        members: number M of networks, whose predictions are averaged; each has these sites.
    """

    image: tuple[int, ...]
    classes: int
    sites: tuple[Site, ...]
    batched: bool
    mask_bytes: int
    shared: float
    members: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the fields for the card."""
        return {
            "image": list(self.image),
            "classes": self.classes,
            "dropout": [{"name": site.name, "p": site.p, "shape": list(site.shape)} for site in self.sites],
            "batched": self.batched,
            "mask_bytes": self.mask_bytes,
            "shared": self.shared,
        } | ({"members": self.members} if self.members > 1 else {})

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the result of `to_json`.

        Raises:
            ValueError: a field is missing or invalid.
        """
        try:
            sites = tuple(
                Site(str(entry["name"]), float(entry["p"]), tuple(map(_size, entry["shape"])))
                for entry in fields["dropout"]
            )
            spec = cls(
                image=tuple(map(_size, fields["image"])),
                classes=_size(fields["classes"]),
                sites=sites,
                batched=bool(fields["batched"]),
                mask_bytes=_size(fields["mask_bytes"]),
                shared=float(fields["shared"]),
                members=_size(fields.get("members", 1)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a description of a graph, got one with a bad {error}") from error
        if not sites or not all(0 < site.p <= 1 for site in sites):
            raise ValueError("expected at least one use of dropout, with probabilities in (0, 1]")
        return spec


def _size(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"expected a size of at least 1, got {value!r}")
    return value


class Graph:
    """Eval-mode prediction and Monte Carlo dropout of a compiled network, without its code.

    Masks are keyed by (seed, sample, site, unit) and shared by all images. An image's result does not depend on the
    other images, nor on how the masks are divided into chunks. One thread computes.

    The graph of an ensemble has M networks, its members. Sample s is a pass of member s mod M under mask s // M of this
    member; the sites of member m are numbered from m times their number, so that members have masks of their own.

    Args:
        spec: what the graph takes.
        files: contents of the files `network.onnx` and, if the first part is separate, `prefix.onnx`.
        first_site: number of the first site in the keys of the masks; 0 but for a member of an ensemble alone.

    Attributes:
        features: number of features that the last linear layer takes; 0 if the network does not end with one.

    Raises:
        ValueError: the graph can't be read, or its inputs and outputs are not those of the description.
    """

    def __init__(self, spec: GraphSpec, files: Mapping[str, bytes], *, first_site: int = 0) -> None:
        if MAIN not in files:
            raise ValueError(f"expected a file {MAIN}, got {', '.join(sorted(files)) or 'none'}")
        self.spec = spec
        self._main = open_session(MAIN, files[MAIN])
        self._prefix = open_session(PREFIX, files[PREFIX]) if PREFIX in files else None
        self._shared = threading.local()
        self._check_interface()
        self.features: int = {entry.name: entry.shape[-1] for entry in self._main.get_outputs()}.get("features", 0)
        sites = {f"mask_{index}": site for index, site in enumerate(spec.sites * spec.members)}
        self._masks = _MaskCache(sites, spec.members, first_site)
        self._ones = {name: np.ones((1, *site.shape), np.float32) for name, site in sites.items()}
        self._value_names = [entry.name for entry in self._main.get_inputs() if entry.name not in sites]
        at_once = (_BATCH_BYTES if spec.batched else _CHUNK_BYTES) // (spec.mask_bytes * spec.members)
        self._chunk = max(at_once, 1) * spec.members

    @property
    def members(self) -> int:
        """Number of networks."""
        return self.spec.members

    @contextmanager
    def share_prefix(self) -> Iterator[None]:
        """Within this context, the calls of this thread compute the prefix once for each image, in bounded memory."""
        self._shared.values = {}
        try:
            yield
        finally:
            self._shared.values = None

    def predict(self, images_B: Array) -> Array:
        """Predict without dropout, as in eval mode; an ensemble averages the probabilities of its members.

        The average over members is that of deep ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474).

        Args:
            images_B: float32 images of shape (B, C, H, W).

        Returns:
            Class probabilities `probs_BC`, float32.

        Raises:
            TypeError: the images are not float32.
            ValueError: the images have another shape.
        """
        return _mean(self._run("probs", images_B, None))

    def logits(self, images_B: Array, mask_range: MaskRange | None = None) -> Array:
        """Compute logits (S, B, K) under the masks of a range, or (1, B, K) in eval mode; see `sample`.

        Those of an ensemble in eval mode are the logarithms of its probabilities.
        """
        logits_BSC = self._run("logits", images_B, mask_range)
        if mask_range is None and self.spec.members > 1:
            log_probs_BSC = log_softmax(logits_BSC.astype(np.float64), axis=2)
            log_mean_1BC: Array = logsumexp(log_probs_BSC, axis=1)[None] - np.log(self.spec.members)
            return log_mean_1BC.astype(np.float32)
        return logits_BSC.transpose(1, 0, 2)

    def predict_with_features(self, images_B: Array) -> tuple[Array, Array]:
        """Predict as `predict` does, and return what the last linear layer takes.

        Args:
            images_B: float32 images of shape (B, C, H, W), at least one.

        Returns:
            `probs_BC`, and features (B, F), float32, of an ensemble those of its first member; F is 0 if the network
            does not end with a linear layer.

        Raises:
            TypeError, ValueError: as in `predict`.
        """
        self._check_images(images_B)
        names = ["probs", "features"] if self.features else ["probs"]
        groups = self._groups(images_B, masks=self.spec.members)
        parts = [self._main.run(names, self._values(images) | self._ones) for images in groups]
        probs_BSC, *features = map(np.concatenate, zip(*parts, strict=True))
        return _mean(probs_BSC), features[0][:, 0] if features else np.empty((len(images_B), 0), np.float32)

    def units(self, images_B: Array) -> Array:
        """Compute what comes before the first mask, one image at a time, so that its bits don't depend on the others.

        Args:
            images_B: as in `predict`.

        Returns:
            (B, U), float32: the one value that the separate first part computes; the images, if no part is separate.

        Raises:
            TypeError: as in `predict`.
            ValueError: as in `predict`, or the first part computes several values.
        """
        self._check_images(images_B)
        if self._prefix is None:
            return as_vectors(images_B)
        (name,) = self._value_names
        values = [self._prefix.run([name], {"image": images_B[b : b + 1]})[0].ravel() for b in range(len(images_B))]
        return np.stack(values) if values else self.units(np.zeros((1, *self.spec.image), np.float32))[:0]

    def sample(self, images_B: Array, samples: int = 100, seed: int = 0, *, masks: Masks = "stratified") -> Array:
        """Predict under each of the first `samples` dropout masks of a seed.

        Memory beyond input and result is bounded: the masks are processed in chunks.

        Args:
            images_B: float32 images of shape (B, C, H, W).
            samples: number S of masks, at least 2.
            seed: 0 .. 2**64 - 1; the same seed gives the same masks on every system.
            masks: the design, see `keep_masks`.

        Returns:
            Class probabilities of each pass, `probs_SBC`, float32.

        Raises:
            TypeError: the images are not float32, or the seed is not an integer.
            ValueError: the images have another shape, fewer than 2 samples, a seed out of range, or an unknown design.
        """
        check_sampling(samples, seed, masks)
        return self._run("probs", images_B, (range(samples), seed, masks)).transpose(1, 0, 2)

    def sample_and_summarize(
        self, images_B: Array, samples: int = 100, seed: int = 0, *, masks: Masks = "stratified"
    ) -> tuple[Array, Uncertainty]:
        """Predict as `sample` does, and summarize the passes.

        Returns:
            `probs_SBC`, float32, and their summary as arrays.
        """
        probs_SBC = self.sample(images_B, samples, seed, masks=masks)
        return probs_SBC, summarize(probs_SBC, masks=masks, members=self.members)

    def estimate(
        self, images_B: Array, samples: int = 100, seed: int = 0, *, masks: Masks = "stratified"
    ) -> Uncertainty:
        """Summarize the passes of `sample`: means, variances, entropies and standard errors, as arrays."""
        return self.sample_and_summarize(images_B, samples, seed, masks=masks)[1]

    def sample_until(
        self,
        images_B: Array,
        *,
        tolerance: float = 0.005,
        max_samples: int = 1000,
        seed: int = 0,
        masks: Masks = "stratified",
    ) -> tuple[Array, Uncertainty]:
        """Predict under as many masks as the required standard error needs; see `sample_until`.

        Args:
            images_B: float32 images of shape (B, C, H, W).
            tolerance: largest acceptable standard error of the most probable class, above 0.
            max_samples: largest number of masks, at least 2.
            seed: as in `sample`.
            masks: as in `sample`.

        Returns:
            `probs_SBC`, and their summary with the standard errors reached.

        Raises:
            TypeError: as in `sample`.
            ValueError: a tolerance of 0 or less, or as in `sample`.
        """
        parts_SBC: list[Array] = []

        def sample(samples: int) -> tuple[Array, Uncertainty]:
            """Compute the masks that are new; the first ones stay the same."""
            check_sampling(samples, seed, masks)
            new = range(sum(map(len, parts_SBC)), samples)
            parts_SBC.append(self._run("probs", images_B, (new, seed, masks)).transpose(1, 0, 2))
            probs_SBC = np.concatenate(parts_SBC)
            return probs_SBC, summarize(probs_SBC, masks=masks, members=self.members)

        return sample_until(sample, tolerance=tolerance, max_samples=max_samples)

    def _run(self, output: str, images_B: Array, mask_range: MaskRange | None) -> Array:
        """Compute an output (B, S, K) for all images and masks; in eval mode, S is the number of members."""
        self._check_images(images_B)
        samples, seed, masks = mask_range or (range(self.spec.members), 0, "stratified")
        images, count = len(images_B), len(samples)

        def compute(values: dict[str, Array], chunk: range) -> Array:
            factors = self._ones if mask_range is None else self._masks.draw(chunk, seed, masks)
            result_BSC: Array = self._main.run([output], values | factors)[0]
            return result_BSC if self.spec.members == 1 else result_BSC[:, _rows(chunk, self.spec.members)]

        if 0 < images * count <= self._chunk and (images == 1 or self.spec.batched):  # all at once
            return compute(self._values(images_B), samples)
        results_BSC = np.empty((images, count, self.spec.classes), np.float32)
        first = 0
        for group in self._groups(images_B, masks=min(self._chunk, count)):
            values, rows = self._values(group), slice(first, first + len(group))
            for start in range(0, count, self._chunk):
                chunk = samples[start : start + self._chunk]
                results_BSC[rows, start : start + len(chunk)] = compute(values, chunk)
            first = rows.stop
        return results_BSC

    def _values(self, images: Array) -> dict[str, Array]:
        """The inputs of the main graph that depend on the images."""
        if self._prefix is None:
            return {self._value_names[0]: images}
        kept: dict[bytes, dict[str, Array]] | None = getattr(self._shared, "values", None)
        key = b"" if kept is None else images.tobytes()
        if kept is not None and key in kept:
            return kept[key]
        values = dict(zip(self._value_names, self._prefix.run(self._value_names, {"image": images}), strict=True))
        each = len(key) + sum(value.nbytes for value in values.values())
        if kept is not None and (len(kept) + 1) * each <= _CACHED_BYTES:
            kept[key] = values
        return values

    def _groups(self, images_B: Array, masks: int) -> Iterator[Array]:
        """Split images into groups that are computed together."""
        size = max(self._chunk // masks, 1) if self.spec.batched else 1
        for first in range(0, len(images_B), size):
            yield images_B[first : first + size]

    def _check_images(self, images_B: Array) -> None:
        if images_B.dtype != np.float32:
            raise TypeError(f"images must be float32, got {images_B.dtype}")
        if images_B.shape[1:] != self.spec.image:
            raise ValueError(
                f"images must have the shape (B, {', '.join(map(str, self.spec.image))}), got {images_B.shape}"
            )

    def _check_interface(self) -> None:
        inputs = {entry.name: entry for entry in self._main.get_inputs()}
        sites = self.spec.sites * self.spec.members
        for index, site in enumerate(sites):
            entry = inputs.get(f"mask_{index}")
            if entry is None or tuple(entry.shape[1:]) != site.shape or entry.type != "tensor(float)":
                found = "none" if entry is None else f"{entry.type} {entry.shape}"
                raise ValueError(f"{MAIN}: input mask_{index}: expected float (masks, {site.shape}), got {found}")
        values = {entry.name for entry in self._prefix.get_outputs()} if self._prefix else {"image"}
        expected = values | {f"mask_{index}" for index in range(len(sites))}
        if inputs.keys() != expected:
            raise ValueError(f"{MAIN}: expected the inputs {sorted(expected)}, got {sorted(inputs)}")
        first = (self._prefix or self._main).get_inputs()
        images = {entry.name: entry for entry in first}.get("image")
        if images is None or tuple(images.shape[1:]) != self.spec.image:
            raise ValueError(
                f"expected an input image {self.spec.image}, got {None if images is None else images.shape}"
            )
        outputs = {entry.name: entry for entry in self._main.get_outputs()}
        if "probs" not in outputs or outputs["probs"].shape[-1] != self.spec.classes:
            raise ValueError(f"{MAIN}: expected an output probs of {self.spec.classes} classes")


def _mean(probs_BSC: Array) -> Array:
    """Average the probabilities of the members in eval mode, in their order: (B, K)."""
    first_BC: Array = probs_BSC[:, 0]
    if probs_BSC.shape[1] == 1:
        return first_BC
    mean_BC: Array = first_BC.astype(np.float64)
    for member in range(1, probs_BSC.shape[1]):
        mean_BC += probs_BSC[:, member]
    mean_BC /= probs_BSC.shape[1]
    return mean_BC.astype(np.float32)


@lru_cache
def _rows(samples: range, members: int) -> Array:
    """Rows of an ensemble's output, which has the masks of one member after those of another, in order of samples.

    A member without samples has one row, as not all operators take none.
    """
    own = [member_samples(samples, member, members) for member in range(members)]
    firsts = np.cumsum([0, *(max(len(one), 1) for one in own)])
    return np.array([firsts[s % members] + s // members - own[s % members].start for s in samples], np.intp)


class _Draw(NamedTuple):
    """Masks of all sites by input; as bytes where they are large."""

    masks: dict[str, Array]
    has_bytes: bool
    nbytes: int


class _MaskCache:
    """Masks as factors, 0 or 1 / (1 - p), the latest of which are kept; large ones as bytes.

    Args:
        sites: those of all members, by input.
        members: number of networks among which samples are divided.
        first_site: number of the first site.
    """

    def __init__(self, sites: Mapping[str, Site], members: int, first_site: int) -> None:
        self._sites, self._members, self._first_site = sites, members, first_site
        self._kept: OrderedDict[tuple[range, int, Masks], _Draw] = OrderedDict()
        self._most = max(_CACHED_DRAWS // len(sites), 8)
        self._bytes = 0
        self._lock = threading.Lock()

    def draw(self, samples: range, seed: int, masks: Masks) -> dict[str, Array]:
        """Masks (S, *shape) by name, float32; of a member, those of its own samples."""
        key = samples, seed, masks
        with self._lock:
            drawn = self._kept.get(key)
            if drawn is not None:
                self._kept.move_to_end(key)
        if drawn is None:
            drawn = self._draw(samples, seed, masks)
            self._keep(key, drawn)
        return self._factors(drawn.masks) if drawn.has_bytes else drawn.masks

    def _draw(self, samples: range, seed: int, masks: Masks) -> _Draw:
        drawn = {}
        for place, (name, site) in enumerate(self._sites.items()):
            own = member_samples(samples, place * self._members // len(self._sites), self._members) or range(1)
            layer = self._first_site + place
            drawn[name] = keep_masks(
                site.shape, site.p, samples=len(own), first=own.start, seed=seed, layer=layer, masks=masks
            )
        small = {name: keep for name, keep in drawn.items() if keep.size <= _SMALL_MASKS}
        drawn |= self._factors(small)
        return _Draw(drawn, len(small) < len(drawn), sum(one.nbytes for one in drawn.values()))

    def _factors(self, drawn: Mapping[str, Array]) -> dict[str, Array]:
        return {
            name: np.multiply(one, survivor_scale(self._sites[name].p), dtype=np.float32)
            if one.dtype == np.bool_
            else one
            for name, one in drawn.items()
        }

    def _keep(self, key: tuple[range, int, Masks], drawn: _Draw) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = drawn
                self._bytes += drawn.nbytes
            while self._bytes > _CACHED_BYTES or len(self._kept) > self._most:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
