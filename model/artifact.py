"""A trained network on disk: `weights.safetensors` and `card.json`, checked when loaded, never unpickled.

A calibrated one has `novelty.safetensors` beside them.
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
    """An artifact that is not what it claims to be: one line says where, what was expected and what was found."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


@dataclass(frozen=True)
class Artifact:
    """A checked network with its card.

    Attributes:
        network: `nn.Sequential` in eval mode, from images in [0, 1] of shape (B, *image) to logits (B, C).
        card: the contents of card.json: architecture, classes, recipe, data, metrics, versions, sha256 of the weights.
        calibrations: of its estimators; none if it was trained without.
        novelty: scores how unlike the training's an image is; None if it was trained without.
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
        """Hex digest of the weights file: the identity of the model."""
        return str(self.card["weights"]["sha256"])


def load_artifact(path: str | os.PathLike[str] | None = None) -> Artifact:
    """Load and check the artifact in a folder, or the embedded default.

    Raises:
        ArtifactError: a file is missing or unreadable, or hash, tensor names, shapes or dtypes are not the card's.
    """
    folder = PRETRAINED if path is None else Path(path)
    card = _read_card(folder / CARD)
    config = _read_config(folder / CARD, card)
    state = _read_tensors(folder / WEIGHTS, _entry(folder / CARD, card, "weights", "sha256"))
    network = _skeleton(folder / CARD, config)
    _check_tensors(folder / WEIGHTS, _describe(network.state_dict()), _describe(state))
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
    """Write a network of `build_mlp(config)` and its card into a folder, each file whole or not at all.

    The weights go first, the card that vouches for them last.

    Args:
        folder: made if missing.
        network: the network to save; its tensors are copied to the CPU.
        config: the architecture that `network` was built from.
        card: what else there is to tell; must name the `classes`.
        calibrations: of the network's estimators.
        novelty: fitted to the network.

    Returns:
        The card as written, with format, architecture, hashes, calibrations and novelty thresholds added.

    Raises:
        ArtifactError: the network is not of that architecture, or the classes aren't as many names as it has outputs.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_tensors(folder / WEIGHTS, _describe(_skeleton(folder / CARD, config).state_dict()), _describe(state))
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
    full_card = computed | dict(card) | computed | fitted  # first in order, and not to be contradicted
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_atomically(folder / CARD, (json.dumps(full_card, indent=2) + "\n").encode())
    if novelty is None:
        (folder / NOVELTY).unlink(missing_ok=True)  # an older artifact's
    return full_card


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one: beside it, fsync, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
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
    data = _read(path)  # once: what is hashed is what is loaded
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ArtifactError(f"{path}: expected sha256 {expected}, got {found}")
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype of safetensors that torch doesn't have
        raise ArtifactError(f"{path}: expected safetensors, got a file that can't be read ({error})") from error


def _read_calibrations(path: Path, card: Mapping[str, Any]) -> tuple[Calibration, ...]:
    given = card.get("calibrations", [])
    if not isinstance(given, list):
        raise ArtifactError(f"{path}: calibrations: expected a list, got {type(given).__name__}")
    try:
        return tuple(map(Calibration.from_json, given))
    except ValueError as error:
        raise ArtifactError(f"{path}: calibrations: {error}") from error


def _read_novelty(folder: Path, card: Mapping[str, Any], config: MLPConfig) -> Novelty | None:
    if "novelty" not in card:
        return None
    tensors = _read_tensors(folder / NOVELTY, _entry(folder / CARD, card, "novelty", "sha256"))
    try:
        novelty = Novelty.of(card["novelty"], tensors)
    except ValueError as error:
        raise ArtifactError(f"{folder / CARD}: novelty: {error}") from error
    sizes = {"first layer": config.hidden[0], "activations": sum(config.hidden)} if config.hidden else {}
    for name, size in sizes.items():
        found = len(novelty.gaussians[name].whiten_FF)
        if found != size:
            raise ArtifactError(f"{folder / NOVELTY}: {name}: expected {size} features, got {found}")
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
    given = {name: _entry(path, card, "architecture", name) for name in MLPConfig.__dataclass_fields__}
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    try:
        config = MLPConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: architecture: expected sizes and probabilities, got {given} ({error})") from error
    _check_classes(path, card, config)
    return config


def _check_classes(path: Path, card: Mapping[str, Any], config: MLPConfig) -> None:
    classes = _entry(path, card, "classes")
    if not (isinstance(classes, list) and len(classes) == config.classes and all(isinstance(c, str) for c in classes)):
        raise ArtifactError(f"{path}: classes: expected {config.classes} names, got {classes!r}")


def _entry(path: Path, card: Mapping[str, Any], *keys: str) -> Any:
    value: Any = card
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise ArtifactError(f"{path}: expected an entry {'.'.join(keys)}, got none")
        value = value[key]
    return value


def _skeleton(path: Path, config: MLPConfig) -> nn.Sequential:
    """Build the network without memory for its weights and without drawing any."""
    try:
        with torch.device("meta"):
            return build_mlp(config)
    except (RuntimeError, TypeError) as error:  # what torch makes of sizes whose product is no 64-bit address
        raise ArtifactError(f"{path}: architecture: expected sizes that memory can hold, got {config}") from error


def _describe(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for name, tensor in state.items()}


def _check_tensors(where: Path, expected: dict[str, str], found: dict[str, str]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                f"{where}: tensor {name}: expected {expected.get(name, 'none')}, got {found.get(name, 'none')}"
            )
