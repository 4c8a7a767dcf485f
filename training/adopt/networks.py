"""The network to adopt: made by a function of the user's, with weights from a file; exported; or of an artifact."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from model import Artifact, load_artifact
from model.artifact import CARD
from model.network.tracing import error_line
from training.adopt.errors import NetworkError
from training.adopt.exported import SUFFIX, load_exported
from training.adopt.wording import first_of
from training.operators import declare_operators

_NO_EXIT = 'what a program does belongs under `if __name__ == "__main__"`'
_OF_DATA_PARALLEL = "module."


def load_network(reference: str, arguments: str = "{}", weights: Path | None = None) -> nn.Module | Artifact:
    """Get the network that somebody names, in eval mode.

    Args:
        reference: `package.module:factory`, a module that the current folder or the environment has, and in it a
            callable that returns the network, or the network itself; or a file that `torch.export.save` wrote, *.pt2;
            or the folder of an artifact.
        arguments: keyword arguments of the callable, a JSON object.
        weights: file of a state dict, safetensors or one that `torch.load(weights_only=True)` reads.

    Raises:
        NetworkError: the reference, the arguments or the weights don't fit; or the folder has no artifact.
        ArtifactError: the artifact is invalid.
    """
    keywords, path = _keywords(arguments), Path(reference)
    is_exported = path.suffix == SUFFIX
    if is_exported or path.is_dir():
        given = [option for option, value in (("--weights", weights), ("--arguments", keywords)) if value]
        if given:
            kind = "an exported network" if is_exported else "an artifact"
            raise NetworkError(f"{reference} is {kind}, which has its weights: leave out {' and '.join(given)}")
        if not is_exported and not (path / CARD).is_file():
            raise NetworkError(f"{reference}: no {CARD} in it: expected the folder of an artifact")
        return load_exported(path) if is_exported else load_artifact(path)
    network = _make(reference, keywords)
    if weights is not None:
        _fill(network, weights)
    return network.eval()


def load_members(
    reference: str, arguments: str, weights: Path | None, members: Sequence[Path]
) -> list[nn.Module | Artifact]:
    """Get a network as `load_network` does, and the further members of an ensemble.

    Args:
        reference: as in `load_network`.
        arguments: as in `load_network`.
        weights: as in `load_network`.
        members: for each further member its weights, for the same callable; or an exported network or an artifact.

    Raises:
        NetworkError: as in `load_network`; or there is no callable for the weights of a member, or it returns the same
            network again.
        ArtifactError: an artifact is invalid.
    """
    networks = [load_network(reference, arguments, weights)]
    for path in members:
        if path.suffix == SUFFIX or path.is_dir():
            networks.append(load_network(str(path)))
            continue
        if ":" not in reference:
            raise NetworkError(
                f"--member {path}: {reference} can't be made again with other weights: give an exported network or an "
                "artifact"
            )
        network = load_network(reference, arguments, path)
        if any(network is other for other in networks):
            raise NetworkError(f"--member {path}: {reference} must be a function that returns a new network each time")
        networks.append(network)
    return networks


def _make(reference: str, keywords: dict[str, Any]) -> nn.Module:
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise NetworkError(
            "the network must be named as package.module:factory, as a file of torch.export.save, *.pt2, or as the "
            f"folder of an artifact, got {reference}"
        )
    target = _find(module_name, attribute)
    if not isinstance(target, nn.Module):
        return _call(reference, target, keywords)
    if keywords:
        raise NetworkError(f"{reference} is a network, not a function: it takes no --arguments")
    return target


def _find(module_name: str, attribute: str) -> Any:
    """Import a module, with the current folder importable as `python -m` has it, and get what it defines."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    declare_operators()  # the module may import torchvision
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"{module_name} can't be imported ({error}): install it, or start from the folder that has it"
        ) from error
    except SystemExit as error:
        raise NetworkError(f"{module_name} can't be imported: it calls sys.exit; {_NO_EXIT}") from error
    except Exception as error:  # whatever the user's module raises
        raise NetworkError(f"{module_name} can't be imported: {error_line(error)}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise NetworkError(f"{module_name} defines no {attribute}")
        found = getattr(found, name)
    return found


def _keywords(arguments: str) -> dict[str, Any]:
    try:
        keywords = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise NetworkError(f"--arguments must be a JSON object, got {arguments} ({error})") from error
    if not isinstance(keywords, dict):
        raise NetworkError(f"--arguments must be a JSON object, got {arguments}")
    return keywords


def _call(reference: str, target: Any, keywords: dict[str, Any]) -> nn.Module:
    if not callable(target):
        raise NetworkError(
            f"{reference} must be a function that returns a torch.nn.Module, got {type(target).__name__}"
        )
    try:
        network = target(**keywords)
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        given = ", ".join(f"{name}={value!r}" for name, value in keywords.items())
        reason = f"it calls sys.exit; {_NO_EXIT}" if isinstance(error, SystemExit) else error_line(error)
        raise NetworkError(f"{reference}({given}) failed: {reason}") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{reference} must return a torch.nn.Module, got {type(network).__name__}")
    return network


def _fill(network: nn.Module, path: Path) -> None:
    """Copy the tensors of a file into a network; names, but for the prefix of DataParallel, and shapes must fit."""
    state = _read_state(path)
    expected = network.state_dict()
    if not any(name in expected for name in state) and all(name.startswith(_OF_DATA_PARALLEL) for name in state):
        state = {name.removeprefix(_OF_DATA_PARALLEL): tensor for name, tensor in state.items()}
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        raise NetworkError(
            f"{path}: the weights don't fit the network: {first_of(missing)} missing, {first_of(unexpected)} unexpected"
        )
    other = [
        f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if state[name].shape != tensor.shape
    ]
    if other:
        raise NetworkError(f"{path}: the weights don't fit the network: {first_of(other)}")
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise NetworkError(f"{path}: values that are not finite in {first_of(broken)}")
    network.load_state_dict(state)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise NetworkError(f"{path}: expected a readable file, got {error.strerror or error}") from error
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # Not torch's own advice: to read the file in a way that runs code from it.
        got = "more than tensors in it" if "Unsupported global" in str(error) else "a file of another kind, or damaged"
        raise NetworkError(
            f"{path}: expected safetensors or a state dict that torch.load(weights_only=True) reads, got {got}: save "
            "it with torch.save(network.state_dict(), FILE)"
        ) from error
    for key in ("state_dict", "model"):  # of a checkpoint
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise NetworkError(f"{path}: expected a state dict, names with tensors, got {type(state).__name__}")
    return state
