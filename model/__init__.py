"""Numerical code: networks with dropout, dropout masks, and the uncertainty of their predictions."""

from model.artifact import Artifact, ArtifactError, load_artifact, save_artifact
from model.calibration import Calibration, find_calibration
from model.dropout import DropConnect, Masks, dropout_layer, keep_masks
from model.mlp import MLPConfig, build_mlp
from model.moments import MomentPropagation, Moments
from model.monte_carlo import MonteCarloDropout
from model.uncertainty import Uncertainty, entropy, summarize

__all__ = [
    "Artifact",
    "ArtifactError",
    "Calibration",
    "DropConnect",
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
    "summarize",
]
