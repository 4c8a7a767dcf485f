"""The compiled network to adopt: from a torch module, or from an artifact."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from model.artifact import Artifact
from model.network.compile import Compiled, compile_to_files
from model.network.ensemble import join_networks
from model.network.tracing import NoDropoutError
from training.adopt.errors import NetworkError
from training.adopt.injection import inject_dropout
from training.adopt.wording import first_of
from training.costs import relative_cost


@dataclass(frozen=True)
class Source:
    """A compiled network, and what the card says of where it comes from.

    Attributes:
        compiled: the network.
        entries: of the card.
    """

    compiled: Compiled
    entries: dict[str, Any] = field(default_factory=dict)


def compile_sources(networks: Sequence[nn.Module | Artifact], image_1: np.ndarray, p: float | None) -> Source:
    """Compile networks to one, an ensemble if there are several; see `compile_source`.

    Raises:
        CompileError, NetworkError, ArtifactError: as in `compile_source`; or the networks are not of one architecture.
    """
    sources = [compile_source(network, image_1, p) for network in networks]
    first = sources[0]
    if len(sources) == 1:
        return first
    compiled = join_networks([source.compiled for source in sources])
    cost = relative_cost(compiled.graph(), first.compiled.graph(), image_1)
    return Source(compiled, first.entries | _entries(compiled) | {"cost": cost})


def compile_source(network: nn.Module | Artifact, image_1: np.ndarray, p: float | None) -> Source:
    """Compile a network, with dropout inserted if that is asked for; take the graph of an artifact as it is.

    Args:
        network: a module, which may be changed, or an artifact.
        image_1: an example, (1, C, H, W) float32.
        p: probability of the dropout to insert before the last linear layer; None to insert none.

    Raises:
        CompileError: the network can't be compiled.
        NetworkError: dropout is to be inserted into a network that has it, or can't be; or there is none, or some of
            p 1.
        ArtifactError: an artifact without a graph.
    """
    if isinstance(network, Artifact):
        if p is not None:
            raise NetworkError(
                "--inject-dropout is for networks without dropout, and an artifact's has it: leave it out"
            )
        return _of_artifact(network, image_1)
    try:
        compiled = compile_to_files(network, image_1)
        _check_probabilities(compiled)
    except NoDropoutError as error:
        if p is None:
            raise NetworkError(
                f"{error}; into a network without dropout, --inject-dropout 0.1 inserts it before the last linear layer"
            ) from error
        before = inject_dropout(network, torch.from_numpy(image_1), p)
        compiled = compile_to_files(network, image_1)
        return Source(compiled, _entries(compiled) | {"injected_dropout": {"p": p, "before": before}})
    if p is not None:
        places = [site.name or "the network itself" for site in compiled.spec.sites]
        raise NetworkError(
            f"--inject-dropout is for networks without dropout, and this one has it at {first_of(places)}: leave it out"
        )
    return Source(compiled, _entries(compiled))


def _of_artifact(artifact: Artifact, image_1: np.ndarray) -> Source:
    if (
        artifact.config is not None and artifact.members == 1
    ):  # of ours: a graph that is compiled again has the layers for moments, too
        compiled = compile_to_files(artifact.network, image_1)
        return Source(compiled, _entries(compiled))
    spec = artifact.engine.spec
    if spec.image != image_1.shape[1:]:
        raise NetworkError(
            f"the artifact's network takes images of {' x '.join(map(str, spec.image))} (channels, height, width): "
            "leave out --size and --channels"
        )
    kept: dict[str, Any] = {
        name: artifact.card[name] for name in ("compiled", "injected_dropout", "cost") if name in artifact.card
    }
    return Source(Compiled(spec, dict(artifact.files), math.nan, artifact.tail, artifact.moments_unavailable), kept)


def _check_probabilities(compiled: Compiled) -> None:
    if whole := [site.name or "the network itself" for site in compiled.spec.sites if site.p >= 1]:
        raise NetworkError(f"dropout of p 1 drops all that it gets, at {first_of(whole)}: give it a p below 1")


def _entries(compiled: Compiled) -> dict[str, Any]:
    return {"compiled": {"difference": compiled.difference, "shared": compiled.spec.shared}}
