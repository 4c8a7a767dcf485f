"""A trained network on disk, verified on loading, never unpickled: `card.json` and the files whose hashes it has.

Format 2 has the compiled network, `network.onnx` and for some networks `prefix.onnx`; what moment propagation needs, if
the network allows it, `quadrature.safetensors` and, for networks of others, `chain.safetensors`; `novelty.safetensors`
if it was fitted; `failures.png`, pictures of known failures, if some were recorded; up to ten example images,
`examples/0.png` and so on; and `weights.safetensors` of a network of ours, for further training. The graph of an
ensemble has all its networks; the weights are then those of the first, for the novelty score. Format 1 had weights
only; its graph is compiled when it is first used.
"""

import hashlib
import json
import math
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from model.calibration import Calibration
from model.chain import Chain, run
from model.examples import FOLDER, MAX_EXAMPLES, Example, check_entries, check_files, file_name, max_bytes
from model.graph import MAIN, PREFIX, Graph, GraphSpec
from model.input_spec import FASHION_MNIST, InputSpec
from model.mlp import MLPConfig
from model.moments import MAX_CLASSES, ChainMoments
from model.novelty import FeatureNovelty, Novelty, novelty_from_parts

if TYPE_CHECKING:
    from torch import nn

    from model.network.compile import Compiled

FORMAT = 2
FORMATS = (1, 2)
CARD = "card.json"
WEIGHTS = "weights.safetensors"
NOVELTY = "novelty.safetensors"
POINTS = "quadrature.safetensors"
CHAIN = "chain.safetensors"
FAILURES = "failures.png"
FILES = (CARD, MAIN, PREFIX, WEIGHTS, NOVELTY, POINTS, CHAIN, FAILURES)
# Entries of the card, with the hashes of their files, that decide answers.
_DECIDING = ("graph", "classes", "input", "calibrations", "novelty", "quadrature", "chain", "weights")
_KNOWN_MASKS = 3  # of each network
NO_MOMENTS = "moments are of one network, and this is an ensemble of {}"
_KNOWN_TOLERANCE = 1e-3  # of an answer, relative to the largest logit: kernels differ between processors
PRETRAINED = Path(__file__).parent / "pretrained"


class ArtifactError(ValueError):
    """An invalid artifact; the message names the file, the expected and the actual content, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


@dataclass(frozen=True)
class Artifact:
    """A verified network with its card.

    Attributes:
        card: the contents of card.json: classes, recipe, data, metrics, versions, hashes of the files.
        calibrations: one for each calibrated estimator; empty if the network is not calibrated.
        novelty: model of the novelty score; None if the artifact has none.
        config: architecture of a network of ours, or of the first one of an ensemble of ours; None for others.
        weights: arrays of this network by name; empty for others.
        spec: what the graph takes; None in format 1.
        files: contents of the graph's files, by name; empty in format 1.
        points: quasi-random points for moment propagation, (P, C); None if the artifact has none.
        tail: the layers from `Graph.units` to the logits of a network of others; None if they are not a chain, and for
            networks of ours, see `chain`.
        failures: PNG file with the pictures of the known failures that the card names; None if it names none.
        examples: example images, in the order in which they are shown.
    """

    card: dict[str, Any]
    calibrations: tuple[Calibration, ...] = ()
    novelty: Novelty | FeatureNovelty | None = None
    config: MLPConfig | None = None
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    spec: GraphSpec | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    points: np.ndarray | None = None
    tail: Chain | None = None
    failures: bytes | None = None
    examples: tuple[Example, ...] = ()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickle or copy the fields; everything else is derived from them."""
        return type(self), tuple(getattr(self, one.name) for one in fields(self))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return tuple(self.card["classes"])

    @property
    def members(self) -> int:
        """Number of networks, whose predictions are averaged: 1, but for an ensemble."""
        return 1 if self.spec is None else self.spec.members

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 digest that identifies the model.

        Of a network of ours, it is that of the weights. Of others, and of ensembles, it is that of all in the card that
        decides answers: the same network with another calibration, input specification or order of classes is another
        model.
        """
        if "weights" in self.card and self.members == 1:
            return str(self.card["weights"]["sha256"])
        deciding = {name: self.card[name] for name in _DECIDING if name in self.card}
        deciding["graph"] = {name: value for name, value in self.card["graph"].items() if name != "known_answers"}
        return _sha256(json.dumps(deciding, sort_keys=True).encode())

    @cached_property
    def input(self) -> InputSpec:
        """What the network takes; Fashion-MNIST's preparation if the card has no input specification."""
        return _input_of(self.card)

    @cached_property
    def engine(self) -> Graph:
        """The compiled network, which needs no torch. A network of format 1 is compiled first, with torch.

        Raises:
            ArtifactError: the artifact has no graph, and what compiles it is not installed.
        """
        if self.spec is not None:
            return Graph(self.spec, self.files)
        if self.card["format"] != 1:
            raise ArtifactError("the artifact has no graph: its network has no active dropout")
        try:
            from model.network.compile import compile_network  # noqa: PLC0415 - needs torch
        except ImportError as error:
            raise ArtifactError(
                f"an artifact of format 1 has no graph, and compiling one needs the extra `train` ({error}): "
                "convert it with python -m training.convert"
            ) from error
        return compile_network(self.network, _known_image(self._architecture().image))

    @cached_property
    def network(self) -> "nn.Sequential":
        """The network of ours as torch modules, in eval mode: from images (B, *image) in [0, 1] to logits (B, C).

        Raises:
            ArtifactError: the artifact has a graph only, or is an ensemble.
        """
        if self.members > 1:
            raise ArtifactError(
                f"the artifact is an ensemble of {self.members} networks: take those of the artifacts that were joined"
            )
        from model.network.mlp import build_with_weights  # noqa: PLC0415 - needs torch

        return build_with_weights(self._architecture(), self.weights)

    @cached_property
    def chain(self) -> Chain | None:
        """The layers of a network of ours as arrays; None for others, and without active dropout.

        Of an ensemble, they are those of its first network, which the novelty score takes.
        """
        if self.config is None or not any(self.config.dropout):
            return None
        return Chain.of_mlp(self.config, self.weights)

    @cached_property
    def moments(self) -> ChainMoments | None:
        """Moment propagation for images (B, C, H, W); None if the network does not allow it."""
        if self.moments_unavailable is not None:
            return None
        if self.tail is not None and self.points is not None:
            return ChainMoments(self.tail, self.points, self.engine.units)
        points = self.points
        if points is None:  # format 1
            from model.network.moments import sobol_points  # noqa: PLC0415 - needs torch

            points = sobol_points(len(self.classes))
        return ChainMoments(typing.cast("Chain", self.chain), points)

    @property
    def moments_unavailable(self) -> str | None:
        """Why there is no moment propagation, for users; None if there is."""
        if len(self.classes) > MAX_CLASSES:
            return f"moments are for at most {MAX_CLASSES} classes, and the network has {len(self.classes)}"
        if self.members > 1:
            return NO_MOMENTS.format(self.members)
        if self.chain is not None or self.tail is not None:
            return None
        if self.config is not None:
            return "the network has no active dropout"
        entry = self.card.get("chain", {})
        return str(entry.get("unavailable", "the artifact was saved without the layers for moments: compile it again"))

    def _architecture(self) -> MLPConfig:
        if self.config is None:
            raise ArtifactError("the artifact has a graph only: its network can't be built as torch modules")
        return self.config


def load_artifact(path: str | os.PathLike[str] | None = None) -> Artifact:
    """Load and verify the artifact in a folder, without torch.

    Args:
        path: the folder; None for the embedded default artifact.

    Raises:
        ArtifactError: a file is missing or unreadable, its hash or contents differ from the card, or the graph does not
            give the answer to a known image that the card has.
    """
    folder = PRETRAINED if path is None else Path(path)
    card = _read_card(folder / CARD)
    config, weights = None, {}
    if {"architecture", "weights"} & card.keys() or card["format"] == 1:
        config = _read_config(folder / CARD, card)
        weights = _read_tensors(folder / WEIGHTS, _required_entry(folder / CARD, card, "weights", "sha256"))
        _check_tensors(folder / WEIGHTS, config.tensors(), _tensor_types(weights))
    spec, files, points = (None, {}, None) if card["format"] == 1 else _read_graph(folder, card)
    if config is None and spec is None:
        _required_entry(folder / CARD, card, "graph")
    if config is not None and spec is not None:
        _check_graph(folder / CARD, spec, config)
    _check_classes(folder / CARD, card, (spec or config).classes)  # type: ignore[union-attr]
    _check_input(folder / CARD, card, spec)
    artifact = Artifact(
        card=card,
        calibrations=_read_calibrations(folder / CARD, card),
        novelty=_read_novelty(folder, card, config),
        config=config,
        weights=weights,
        spec=spec,
        files=files,
        points=points,
        tail=None if spec is None or config is not None else _read_tail(folder, card, spec),
        failures=_read_failures(folder, card),
        examples=_read_examples(folder, card),
    )
    if spec is not None:
        _check_known_answer(folder, artifact)
    _check_poses(folder, artifact)
    return artifact


def save_artifact(
    folder: Path,
    network: "nn.Sequential",
    config: MLPConfig,
    card: Mapping[str, Any],
    *,
    calibrations: Sequence[Calibration] = (),
    novelty: Novelty | FeatureNovelty | None = None,
    examples: Sequence[Example] = (),
) -> dict[str, Any]:
    """Compile a network of `build_mlp(config)` and write it with its card; each file is written atomically.

    The card is written last, after the files whose hashes it contains.

    Args:
        folder: created if missing.
        network: the network to save; its tensors are copied to the CPU.
        config: the architecture that `network` was built from.
        card: further entries of the card; must contain `classes`.
        calibrations: calibrations of the network's estimators.
        novelty: novelty model fitted to the network.
        examples: images to show, ten at most.

    Returns:
        The card as written, with format, architecture, hashes, calibrations and novelty thresholds added.

    Raises:
        ArtifactError: the network has another architecture, the number of class names is not that of its outputs, or
            an example has another size.
    """
    weights = {
        name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in network.state_dict().items()
    }
    _check_tensors(folder / WEIGHTS, config.tensors(), _tensor_types(weights))
    _check_classes(folder / CARD, card, config.classes)
    files = {WEIGHTS: safetensors.numpy.save(weights)}
    computed: dict[str, Any] = {
        "format": FORMAT,
        "architecture": asdict(config),
        "weights": _file_entry(WEIGHTS, files),
    }
    if any(config.dropout):
        from model.network.compile import compile_to_files  # noqa: PLC0415 - needs torch
        from model.network.mlp import build_with_weights  # noqa: PLC0415 - needs torch
        from model.network.moments import sobol_points  # noqa: PLC0415 - needs torch

        compiled = compile_to_files(build_with_weights(config, weights), _known_image(config.image))
        computed["graph"] = _graph_entry(compiled.spec, compiled.files)
        files |= compiled.files
        if config.classes <= MAX_CLASSES:
            files[POINTS] = safetensors.numpy.save({"points": sobol_points(config.classes)})
            computed["quadrature"] = _file_entry(POINTS, files)
    return _write(folder, card, computed, files, calibrations, novelty, examples)


def save_compiled(  # noqa: PLR0913 - the optional parts of an artifact
    folder: Path,
    compiled: "Compiled",
    card: Mapping[str, Any],
    *,
    input_spec: InputSpec | None = None,
    calibrations: Sequence[Calibration] = (),
    novelty: Novelty | FeatureNovelty | None = None,
    examples: Sequence[Example] = (),
    first: Artifact | None = None,
) -> dict[str, Any]:
    """Write a compiled network of any architecture with its card; as `save_artifact` does.

    Args:
        folder: created if missing.
        compiled: result of `model.network.compile_to_files`.
        card: further entries of the card; must contain `classes`.
        input_spec: what the network takes.
        calibrations: calibrations of the network's estimators.
        novelty: novelty model fitted to the network.
        examples: images to show, ten at most.
        first: of an ensemble of networks of ours, the artifact of the first, whose layers a `Novelty` takes.

    Returns:
        The card as written.

    Raises:
        ArtifactError: the number of class names is not that of the network's outputs, or an example has another size.
    """
    _check_classes(folder / CARD, card, compiled.spec.classes)
    files = dict(compiled.files)
    computed = {"format": FORMAT, "graph": _graph_entry(compiled.spec, compiled.files)}
    if first is not None and first.config is not None:
        files[WEIGHTS] = safetensors.numpy.save(dict(first.weights))
        computed |= {"architecture": asdict(first.config), "weights": _file_entry(WEIGHTS, files)}
    if input_spec is not None:
        computed["input"] = input_spec.to_json()
        _check_input(folder / CARD, computed, compiled.spec)
    if compiled.chain is None:
        computed["chain"] = {"unavailable": compiled.no_chain}
    elif compiled.spec.classes <= MAX_CLASSES:
        from model.network.moments import sobol_points  # noqa: PLC0415 - needs torch

        files[POINTS] = safetensors.numpy.save({"points": sobol_points(compiled.spec.classes)})
        files[CHAIN] = safetensors.numpy.save(compiled.chain.arrays())
        computed |= {
            "quadrature": _file_entry(POINTS, files),
            "chain": _file_entry(CHAIN, files) | compiled.chain.to_json(),
        }
    return _write(folder, card, computed, files, calibrations, novelty, examples)


def add_to_card(
    folder: Path,
    entries: Mapping[str, Any],
    *,
    novelty: Novelty | FeatureNovelty | None = None,
    failures: Sequence[Mapping[str, Any]] = (),
    pictures: bytes = b"",
) -> None:
    """Add entries to the card of a saved artifact, a novelty model and known failures.

    Args:
        folder: of the artifact.
        entries: further entries of the card.
        novelty: novelty model, instead of the one that the artifact may have.
        failures: kinds of failures: "text", and "images", the captions of its pictures.
        pictures: PNG file with the pictures of all kinds, square and side by side, in the order of the captions; empty
            if there are none.

    Raises:
        ArtifactError: there is no card that can be read.
    """
    card = _read_card(folder / CARD) | dict(entries)
    if novelty is not None:
        content = safetensors.numpy.save(novelty.arrays())
        write_atomically(folder / NOVELTY, content)
        card["novelty"] = _file_entry(NOVELTY, {NOVELTY: content}) | novelty.to_json()
    if failures:
        card["failures"] = {"kinds": list(failures)}
    if pictures:
        write_atomically(folder / FAILURES, pictures)
        card["failures"] |= _file_entry(FAILURES, {FAILURES: pictures})
    write_atomically(folder / CARD, _as_json(card))


def _write(
    folder: Path,
    card: Mapping[str, Any],
    computed: dict[str, Any],
    files: dict[str, bytes],
    calibrations: Sequence[Calibration],
    novelty: Novelty | FeatureNovelty | None,
    examples: Sequence[Example],
) -> dict[str, Any]:
    """Write files and card, and return the card; computed entries come first and can't be overridden."""
    fitted: dict[str, Any] = {"calibrations": [calibration.to_json() for calibration in calibrations]}
    if novelty is not None:
        files[NOVELTY] = safetensors.numpy.save(novelty.arrays())
        fitted["novelty"] = _file_entry(NOVELTY, files) | novelty.to_json()
    if examples:
        files |= {file_name(place): example.content for place, example in enumerate(examples)}
        fitted["examples"] = [
            _file_entry(file_name(place), files) | {"name": example.name} for place, example in enumerate(examples)
        ]
    given = {name: value for name, value in card.items() if name != "examples"}
    full_card = computed | given | computed | fitted
    _check_examples(folder / CARD, full_card, examples)
    (folder / FOLDER if examples else folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_atomically(folder / CARD, _as_json(full_card))
    kept = {FAILURES} if "failures" in full_card else set()
    for name in {*FILES, *map(file_name, range(MAX_EXAMPLES))} - {CARD} - files.keys() - kept:
        (folder / name).unlink(missing_ok=True)  # left by an older artifact
    return full_card


def _as_json(card: Mapping[str, Any]) -> bytes:
    return (json.dumps(card, indent=2) + "\n").encode()


def _file_entry(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {"file": name, "sha256": _sha256(files[name])}


def _graph_entry(spec: GraphSpec, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the card says of the graph, with the answer to a known image."""
    graph = Graph(spec, files)
    known = _known_answers(graph)
    return {
        "file": MAIN,
        "sha256": _sha256(files[MAIN]),
        "files": {name: _sha256(content) for name, content in files.items()},
        **spec.to_json(),
        "known_answers": {name: answer.tolist() for name, answer in known.items()},
    }


def _known_image(shape: tuple[int, ...]) -> np.ndarray:
    """An image of values that rise from 0 to 1, (1, *shape)."""
    return np.linspace(0, 1, math.prod(shape), dtype=np.float32).reshape(1, *shape)


def _known_answers(graph: Graph) -> dict[str, np.ndarray]:
    """Logits of the known image in eval mode and under three masks of each of M networks, (K,) and (3 M, K)."""
    image_1 = _known_image(graph.spec.image)
    masked = graph.logits(image_1, (range(_KNOWN_MASKS * graph.members), 0, "stratified"))
    return {"eval": graph.logits(image_1)[0, 0], "masks": masked[:, 0]}


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that after a crash either the old or the new content is complete.

    The data goes to a temporary file in the same folder, which is synced and then renamed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: expected a readable file, got {error.strerror or error}") from error


def _read_verified(path: Path, expected: str) -> bytes:
    """Read once, so that the hashed bytes are the loaded bytes."""
    data = _read(path)
    actual = _sha256(data)
    if actual != expected:
        raise ArtifactError(f"{path}: expected sha256 {expected}, got {actual}")
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_tensors(path: Path, expected: str) -> dict[str, np.ndarray]:
    data = _read_verified(path, expected)
    try:
        return safetensors.numpy.load(data)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:  # the others: a dtype that NumPy lacks
        raise ArtifactError(f"{path}: expected safetensors, got a file that can't be read ({error})") from error


def _read_calibrations(path: Path, card: Mapping[str, Any]) -> tuple[Calibration, ...]:
    entries = card.get("calibrations", [])
    if not isinstance(entries, list):
        raise ArtifactError(f"{path}: calibrations: expected a list, got {type(entries).__name__}")
    try:
        calibrations = tuple(map(Calibration.from_json, entries))
    except ValueError as error:
        raise ArtifactError(f"{path}: calibrations: {error}") from error
    for calibration in calibrations:
        for thresholds in calibration.set_scores.get("mondrian", {}).values():
            found, expected = len(thresholds) if isinstance(thresholds, tuple) else None, len(card["classes"])
            if found not in (None, expected):
                raise ArtifactError(f"{path}: calibrations: mondrian: expected {expected} thresholds, got {found}")
    return calibrations


def _read_graph(folder: Path, card: Mapping[str, Any]) -> tuple[GraphSpec | None, dict[str, bytes], np.ndarray | None]:
    if "graph" not in card:
        return None, {}, None
    try:
        spec = GraphSpec.from_json(card["graph"])
    except ValueError as error:
        raise ArtifactError(f"{folder / CARD}: graph: {error}") from error
    hashes = _required_entry(folder / CARD, card, "graph", "files")
    if not isinstance(hashes, Mapping) or MAIN not in hashes or not hashes.keys() <= {MAIN, PREFIX}:
        raise ArtifactError(f"{folder / CARD}: graph.files: expected {MAIN}, perhaps {PREFIX}, got {hashes!r}")
    files = {name: _read_verified(folder / name, str(sha256)) for name, sha256 in hashes.items()}
    points = None
    if "quadrature" in card:
        tensors = _read_tensors(folder / POINTS, _required_entry(folder / CARD, card, "quadrature", "sha256"))
        points = tensors.get("points")
        if points is None or points.ndim != 2 or points.shape[1] != spec.classes or points.dtype != np.float64:
            raise ArtifactError(f"{folder / POINTS}: expected float64 points of {spec.classes} classes")
    return spec, files, points


def _read_tail(folder: Path, card: Mapping[str, Any], spec: GraphSpec) -> Chain | None:
    """Read the layers for moment propagation of a network of others; None if it has none."""
    fields = card.get("chain", {})
    if not isinstance(fields, Mapping):
        raise ArtifactError(f"{folder / CARD}: chain: expected a JSON object, got {type(fields).__name__}")
    if not fields or "unavailable" in fields:
        return None
    _required_entry(folder / CARD, card, "quadrature", "sha256")
    tensors = _read_tensors(folder / CHAIN, _required_entry(folder / CARD, card, "chain", "sha256"))
    try:
        types = Chain.tensor_types(fields)
        _check_tensors(folder / CHAIN, types, _tensor_types(tensors))
        chain = Chain.from_parts(fields, tensors, [site.p for site in spec.sites])
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(f"{folder / CARD}: chain: {error}") from error
    if fields["units"][-1] != spec.classes:
        raise ArtifactError(f"{folder / CARD}: chain: expected {spec.classes} logits, got {fields['units'][-1]}")
    return chain


def _check_graph(path: Path, spec: GraphSpec, config: MLPConfig) -> None:
    """Compare the graph's description with the architecture."""
    expected = [list(config.image), config.classes, [p for p in config.dropout if p > 0]]
    actual = [list(spec.image), spec.classes, [site.p for site in spec.sites]]
    for name, of_config, of_graph in zip(("image", "classes", "dropout"), expected, actual, strict=True):
        if of_config != of_graph:
            raise ArtifactError(f"{path}: graph.{name}: expected {of_config} as in architecture, got {of_graph}")


def _check_known_answer(folder: Path, artifact: Artifact) -> None:
    """Run an image whose logits the card has."""
    try:
        answers = _known_answers(artifact.engine)
    except ValueError as error:
        raise ArtifactError(f"{folder / MAIN}: {error}") from error
    expected = _required_entry(folder / CARD, artifact.card, "graph", "known_answers")
    for name, answer in answers.items():
        given = np.array(expected.get(name, ()) if isinstance(expected, Mapping) else (), dtype=np.float64)
        if not _is_close(answer, given):
            raise ArtifactError(f"{folder / MAIN}: expected the known answer of the card, got another ({name})")
    if (tail := artifact.tail) is not None:
        try:
            (units_U,) = artifact.engine.units(_known_image(artifact.engine.spec.image))
            logits_C = run((*tail.before, *tail.after), units_U)
        except ValueError as error:
            raise ArtifactError(f"{folder / CHAIN}: {error}") from error
        if not _is_close(logits_C, answers["eval"]):
            raise ArtifactError(f"{folder / CHAIN}: expected the known answer of the card, got another")


def _is_close(answer: np.ndarray, given: np.ndarray) -> bool:
    """Whether an answer has the shape and, but for rounding, the values of another."""
    scale = max(float(np.abs(answer).max()), 1e-6)
    return given.shape == answer.shape and bool(np.abs(answer - given).max() <= _KNOWN_TOLERANCE * scale)


def _read_novelty(folder: Path, card: Mapping[str, Any], config: MLPConfig | None) -> Novelty | FeatureNovelty | None:
    if "novelty" not in card:
        return None
    tensors = _read_tensors(folder / NOVELTY, _required_entry(folder / CARD, card, "novelty", "sha256"))
    try:
        novelty = novelty_from_parts(card["novelty"], tensors)
    except ValueError as error:
        raise ArtifactError(f"{folder / CARD}: novelty: {error}") from error
    if isinstance(novelty, Novelty) and config and config.hidden:
        for name, size in {"first layer": config.hidden[0], "activations": sum(config.hidden)}.items():
            actual = len(novelty.gaussians[name].whiten_FF)
            if actual != size:
                raise ArtifactError(f"{folder / NOVELTY}: {name}: expected {size} features, got {actual}")
    return novelty


def _check_poses(folder: Path, artifact: Artifact) -> None:
    """Check that the view for poses takes the network's images, and its features if it takes any."""
    novelty = artifact.novelty
    if novelty is None or novelty.poses is None:
        return
    features = artifact.engine.features if isinstance(novelty, FeatureNovelty) else 0
    try:
        novelty.poses.check(artifact.input.shape, features)
    except ValueError as error:
        raise ArtifactError(f"{folder / NOVELTY}: {error}") from error


def _read_failures(folder: Path, card: Mapping[str, Any]) -> bytes | None:
    if "failures" not in card:
        return None
    kinds = _required_entry(folder / CARD, card, "failures", "kinds")
    if not isinstance(kinds, list) or not all(map(_is_failure, kinds)):
        raise ArtifactError(f"{folder / CARD}: failures.kinds: expected a text and captions of images in each")
    if not any(kind["images"] for kind in kinds):
        return None
    return _read_verified(folder / FAILURES, str(_required_entry(folder / CARD, card, "failures", "sha256")))


def _is_failure(kind: object) -> bool:
    if not isinstance(kind, Mapping) or not isinstance(kind.get("text"), str):
        return False
    captions = kind.get("images")
    return isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)


def _read_examples(folder: Path, card: Mapping[str, Any]) -> tuple[Example, ...]:
    _check_examples(folder / CARD, card, ())
    entries = card.get("examples", [])
    limit = max_bytes(_input_of(card))
    examples = tuple(Example(one["name"], _read_small(folder / one["file"], one["sha256"], limit)) for one in entries)
    _check_examples(folder / CARD, card, examples)
    return examples


def _read_small(path: Path, expected: str, limit: int) -> bytes:
    """Read a file of at most so many bytes."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path}: expected a readable file, got {error.strerror or error}") from error
    if size > limit:
        raise ArtifactError(f"{path}: expected at most {limit} bytes, got {size}")
    return _read_verified(path, expected)


def _check_examples(path: Path, card: Mapping[str, Any], examples: Sequence[Example]) -> None:
    try:
        check_entries(card.get("examples", []))
        check_files(examples, _input_of(card))
    except ValueError as error:
        raise ArtifactError(f"{path}: examples: {error}") from error


def _read_card(path: Path) -> dict[str, Any]:
    text = _read(path)
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(card, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(card).__name__}")
    if card.get("format") not in FORMATS:
        raise ArtifactError(f"{path}: format: expected {' or '.join(map(str, FORMATS))}, got {card.get('format')!r}")
    return card


def _read_config(path: Path, card: dict[str, Any]) -> MLPConfig:
    entries = {name: _required_entry(path, card, "architecture", name) for name in MLPConfig.__dataclass_fields__}
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()
    }
    try:
        config = MLPConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path}: architecture: expected sizes and probabilities, got {entries} ({error})"
        ) from error
    return config


def _input_of(card: Mapping[str, Any]) -> InputSpec:
    """The input specification of a card; cards of our own networks have a text or nothing there."""
    entry = card.get("input")
    return InputSpec.from_json(entry) if isinstance(entry, Mapping) else FASHION_MNIST


def _check_input(path: Path, card: Mapping[str, Any], spec: GraphSpec | None) -> None:
    """Check the input specification, if there is one, and that the graph takes such images."""
    try:
        found = _input_of(card)
    except ValueError as error:
        raise ArtifactError(f"{path}: input: {error}") from error
    if isinstance(card.get("input"), Mapping) and spec is not None and found.shape != spec.image:
        raise ArtifactError(f"{path}: input: expected images {list(spec.image)} as the graph, got {list(found.shape)}")


def _check_classes(path: Path, card: Mapping[str, Any], count: int) -> None:
    classes = _required_entry(path, card, "classes")
    if not (isinstance(classes, list) and len(classes) == count and all(isinstance(c, str) for c in classes)):
        raise ArtifactError(f"{path}: classes: expected {count} names, got {classes!r}")


def _required_entry(path: Path, card: Mapping[str, Any], *keys: str) -> Any:
    value: Any = card
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise ArtifactError(f"{path}: expected an entry {'.'.join(keys)}, got none")
        value = value[key]
    return value


def _tensor_types(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _check_tensors(path: Path, expected: dict[str, str], actual: dict[str, str]) -> None:
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise ArtifactError(
                f"{path}: tensor {name}: expected {expected.get(name, 'none')}, got {actual.get(name, 'none')}"
            )
