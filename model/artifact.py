"""A trained network on disk: `weights.safetensors` and `card.json`, verified on loading, never unpickled.

A calibrated artifact may also contain `novelty.safetensors`.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from model.calibration import Calibration
from model.mlp import MLPConfig, build_mlp
from model.novelty import Novelty

FORMAT = 1
CARD = "card.json"
WEIGHTS = "weights.safetensors"
NOVELTY = "novelty.safetensors"
PRETRAINED = Path(__file__).parent / "pretrained"


class ArtifactError(ValueError):
    """An invalid artifact; the message names the file, the expected and the actual content, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


@dataclass(frozen=True)
class Artifact:
    """A verified network with its card.

    Attributes:
        network: `nn.Sequential` in eval mode, from images in [0, 1] of shape (B, *image) to logits (B, C).
        card: the contents of card.json: architecture, classes, recipe, data, metrics, versions, sha256 of the weights.
        calibrations: one for each calibrated estimator; empty if the network is not calibrated.
        novelty: model of the novelty score; None if the artifact has none.
    """

    network: nn.Sequential
    card: dict[str, Any]
    calibrations: tuple[Calibration, ...] = ()
    novelty: Novelty | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return tuple(self.card["classes"])

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 digest of the weights file; it identifies the model."""
        return str(self.card["weights"]["sha256"])


def load_artifact(path: str | os.PathLike[str] | None = None) -> Artifact:
    """Load and verify the artifact in a folder.

    Args:
        path: the folder; None for the embedded default artifact.

    Raises:
        ArtifactError: a file is missing or unreadable, or its hash or tensors differ from the card.
    """
    folder = PRETRAINED if path is None else Path(path)
    card = _read_card(folder / CARD)
    config = _read_config(folder / CARD, card)
    state = _read_tensors(folder / WEIGHTS, _required_entry(folder / CARD, card, "weights", "sha256"))
    network = _build_without_weights(folder / CARD, config)
    _check_tensors(folder / WEIGHTS, _tensor_types(network.state_dict()), _tensor_types(state))
    network.load_state_dict(state, assign=True)
    return Artifact(
        network=network.eval().requires_grad_(requires_grad=False),
        card=card,
        calibrations=_read_calibrations(folder / CARD, card),
        novelty=_read_novelty(folder, card, config),
    )


def save_artifact(
    folder: Path,
    network: nn.Sequential,
    config: MLPConfig,
    card: Mapping[str, Any],
    *,
    calibrations: Sequence[Calibration] = (),
    novelty: Novelty | None = None,
) -> dict[str, Any]:
    """Write a network of `build_mlp(config)` and its card into a folder; each file is written atomically.

    The card is written last, after the files whose hashes it contains.

    Args:
        folder: created if missing.
        network: the network to save; its tensors are copied to the CPU.
        config: the architecture that `network` was built from.
        card: further entries of the card; must contain `classes`.
        calibrations: calibrations of the network's estimators.
        novelty: novelty model fitted to the network.

    Returns:
        The card as written, with format, architecture, hashes, calibrations and novelty thresholds added.

    Raises:
        ArtifactError: the network has another architecture, or the number of class names is not that of its outputs.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_tensors(
        folder / WEIGHTS,
        _tensor_types(_build_without_weights(folder / CARD, config).state_dict()),
        _tensor_types(state),
    )
    _check_classes(folder / CARD, card, config)
    data = safetensors.torch.save(state)
    files = {WEIGHTS: data}
    computed = {
        "format": FORMAT,
        "architecture": asdict(config),
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(data).hexdigest()},
    }
    fitted: dict[str, Any] = {"calibrations": [calibration.to_json() for calibration in calibrations]}
    if novelty is not None:
        files[NOVELTY] = safetensors.torch.save(novelty.tensors())
        sha256 = hashlib.sha256(files[NOVELTY]).hexdigest()
        fitted["novelty"] = {"file": NOVELTY, "sha256": sha256, **novelty.to_json()}
    full_card = computed | dict(card) | computed | fitted  # computed entries come first and can't be overridden
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_atomically(folder / CARD, (json.dumps(full_card, indent=2) + "\n").encode())
    if novelty is None:
        (folder / NOVELTY).unlink(missing_ok=True)  # left by an older artifact
    return full_card


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


def _read_tensors(path: Path, expected: str) -> dict[str, torch.Tensor]:
    data = _read(path)  # read once, so that the hashed bytes are the loaded bytes
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise ArtifactError(f"{path}: expected sha256 {expected}, got {actual}")
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not support
        raise ArtifactError(f"{path}: expected safetensors, got a file that can't be read ({error})") from error


def _read_calibrations(path: Path, card: Mapping[str, Any]) -> tuple[Calibration, ...]:
    entries = card.get("calibrations", [])
    if not isinstance(entries, list):
        raise ArtifactError(f"{path}: calibrations: expected a list, got {type(entries).__name__}")
    try:
        return tuple(map(Calibration.from_json, entries))
    except ValueError as error:
        raise ArtifactError(f"{path}: calibrations: {error}") from error


def _read_novelty(folder: Path, card: Mapping[str, Any], config: MLPConfig) -> Novelty | None:
    if "novelty" not in card:
        return None
    tensors = _read_tensors(folder / NOVELTY, _required_entry(folder / CARD, card, "novelty", "sha256"))
    try:
        novelty = Novelty.from_parts(card["novelty"], tensors)
    except ValueError as error:
        raise ArtifactError(f"{folder / CARD}: novelty: {error}") from error
    sizes = {"first layer": config.hidden[0], "activations": sum(config.hidden)} if config.hidden else {}
    for name, size in sizes.items():
        actual = len(novelty.gaussians[name].whiten_FF)
        if actual != size:
            raise ArtifactError(f"{folder / NOVELTY}: {name}: expected {size} features, got {actual}")
    return novelty


def _read_card(path: Path) -> dict[str, Any]:
    text = _read(path)
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(card, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(card).__name__}")
    if card.get("format") != FORMAT:
        raise ArtifactError(f"{path}: format: expected {FORMAT}, got {card.get('format')!r}")
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
    _check_classes(path, card, config)
    return config


def _check_classes(path: Path, card: Mapping[str, Any], config: MLPConfig) -> None:
    classes = _required_entry(path, card, "classes")
    if not (isinstance(classes, list) and len(classes) == config.classes and all(isinstance(c, str) for c in classes)):
        raise ArtifactError(f"{path}: classes: expected {config.classes} names, got {classes!r}")


def _required_entry(path: Path, card: Mapping[str, Any], *keys: str) -> Any:
    value: Any = card
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise ArtifactError(f"{path}: expected an entry {'.'.join(keys)}, got none")
        value = value[key]
    return value


def _build_without_weights(path: Path, config: MLPConfig) -> nn.Sequential:
    """Build the network on the meta device: without memory or initial values for its weights."""
    try:
        with torch.device("meta"):
            return build_mlp(config)
    except (RuntimeError, TypeError) as error:  # torch, for sizes whose product overflows 64 bits
        raise ArtifactError(f"{path}: architecture: expected sizes that memory can hold, got {config}") from error


def _tensor_types(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for name, tensor in state.items()}


def _check_tensors(path: Path, expected: dict[str, str], actual: dict[str, str]) -> None:
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise ArtifactError(
                f"{path}: tensor {name}: expected {expected.get(name, 'none')}, got {actual.get(name, 'none')}"
            )
