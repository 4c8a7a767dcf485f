"""Numerical code: dropout masks, compiled networks, and the uncertainty of their predictions.

Only `model.network` needs torch; it is imported when one of its names is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from model.artifact import Artifact, ArtifactError, load_artifact, save_artifact, save_compiled
from model.calibration import Calibration, find_calibration
from model.graph import Graph
from model.masks import Masks, keep_masks
from model.mlp import MLPConfig
from model.moments import ChainMoments, Moments
from model.uncertainty import Uncertainty, entropy, summarize

if TYPE_CHECKING:
    from model.network.dropout import DropConnect, dropout_layer
    from model.network.mlp import build_mlp
    from model.network.moments import MomentPropagation
    from model.network.monte_carlo import MonteCarloDropout

_WITH_TORCH = {
    "DropConnect": "dropout",
    "MomentPropagation": "moments",
    "MonteCarloDropout": "monte_carlo",
    "build_mlp": "mlp",
    "dropout_layer": "dropout",
}

__all__ = [
    "Artifact",
    "ArtifactError",
    "Calibration",
    "ChainMoments",
    "DropConnect",
    "Graph",
    "MLPConfig",
    "Masks",
    "MomentPropagation",
    "Moments",
    "MonteCarloDropout",
    "Uncertainty",
    "build_mlp",
    "dropout_layer",
    "entropy",
    "find_calibration",
    "keep_masks",
    "load_artifact",
    "save_artifact",
    "save_compiled",
    "summarize",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"model.network.{_WITH_TORCH[name]}"), name)
