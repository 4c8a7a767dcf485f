"""Joins compiled networks of one architecture to one graph, whose predictions are averaged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from model.artifact import NO_MOMENTS
from model.graph import MAIN, PREFIX, Graph, GraphSpec, Site
from model.network.compile import Compiled, compile_to_files
from model.network.tracing import CompileError

Renamer = Callable[[str], str]

_CHECKED_PASSES = 7  # of each member
_CHECKED_IMAGES = 3
_TOLERANCE = 1e-6  # of a probability; the operators are the same, but kernels may be chosen otherwise


def compile_ensemble(modules: Sequence[nn.Module], example_image: Tensor | np.ndarray) -> Graph:
    """Compile several networks of one architecture to one graph, which averages their predictions.

    Args:
        modules: M networks, each as in `compile_network`.
        example_image: as in `compile_network`.

    Raises:
        CompileError: as in `compile_network` and `join_networks`.
    """
    return join_networks([compile_to_files(module, example_image) for module in modules]).graph()


def join_networks(members: Sequence[Compiled]) -> Compiled:
    """Join compiled networks to one, an ensemble; see `model.graph.Graph` for its passes.

    Args:
        members: networks with images, classes and dropout of the same shapes; each was compared with torch when it was
            compiled, and is compared with its part of the result.

    Returns:
        The only member itself, or a network whose graph has the operators of all members. Its features are those of
        the first member. It has no chain, as moments are of one network.

    Raises:
        CompileError: there are no members, they differ in architecture, or the joint graph computes something else.
    """
    if not members:
        raise CompileError("an ensemble needs networks, got none")
    if len(members) == 1:
        return members[0]
    first = members[0].spec
    for number, member in enumerate(members, start=1):
        _check_alike(number, member.spec, first)
    spec = replace(first, members=len(members), mask_bytes=max(member.spec.mask_bytes for member in members))
    files = _join_files([member.files for member in members], len(first.sites))
    sites = len(first.sites)
    alone = [Graph(one.spec, one.files, first_site=place * sites) for place, one in enumerate(members)]
    _verify(Graph(spec, files), alone)
    difference = max(member.difference for member in members)
    return Compiled(spec, files, difference, no_chain=NO_MOMENTS.format(len(members)))


def _check_alike(number: int, spec: GraphSpec, first: GraphSpec) -> None:
    """Refuse a member that differs from the first."""
    compared = {
        "the shape of images": (list(spec.image), list(first.image)),
        "the number of classes": (spec.classes, first.classes),
        "its dropout": tuple(", ".join(map(_in_words, one.sites)) for one in (spec, first)),
        "whether images are computed together": (spec.batched, first.batched),
    }
    if spec.members > 1:
        raise CompileError(f"member {number} is an ensemble of {spec.members} networks: give these one by one")
    for name, (found, expected) in compared.items():
        if found != expected:
            raise CompileError(
                f"member {number} differs from the first in {name}, {found} instead of {expected}: an ensemble needs "
                "single networks of one architecture"
            )


def _in_words(site: Site) -> str:
    return f"{site.name or 'the network itself'} p {site.p:g} {list(site.shape)}"


def _join_files(members: Sequence[Any], sites: int) -> dict[str, bytes]:
    """Join the files of the members: their values and masks are numbered on, and the results follow each other."""
    mains = [onnx.load_model_from_string(files[MAIN]) for files in members]
    renamers, values = [], 0
    for member, main in enumerate(mains):
        names = {"": "", "image": "image"} | ({"features": "features"} if member == 0 else {})
        names |= {f"mask_{site}": f"mask_{member * sites + site}" for site in range(sites)}
        count = sum(entry.name not in names for entry in main.graph.input)
        names |= {f"value_{index}": f"value_{values + index}" for index in range(count)}
        values += count
        renamers.append(partial(_rename, names=names, prefix=f"member_{member}."))
    joined = _join_graphs([main.graph for main in mains], renamers)
    for name in ("logits", "probs"):
        results = [rename(name) for rename in renamers]
        joined.node.append(onnx.helper.make_node("Concat", results, [name], name=f"node_{name}", axis=1))
        (shape,) = (entry for entry in mains[0].graph.output if entry.name == name)
        joined.output.add().CopyFrom(shape)
        joined.output[-1].type.tensor_type.shape.dim[1].dim_param = "passes"
    joined.output.extend(entry for entry in mains[0].graph.output if entry.name == "features")
    found = {MAIN: _as_file(mains[0], joined)}
    if PREFIX in members[0]:
        prefixes = [onnx.load_model_from_string(files[PREFIX]) for files in members]
        joined = _join_graphs([prefix.graph for prefix in prefixes], renamers)
        for prefix, rename in zip(prefixes, renamers, strict=True):
            for entry in prefix.graph.output:
                joined.output.add().CopyFrom(entry)
                joined.output[-1].name = rename(entry.name)
        found[PREFIX] = _as_file(prefixes[0], joined)
    return found


def _rename(name: str, *, names: Mapping[str, str], prefix: str) -> str:
    return names.get(name, prefix + name)


def _join_graphs(graphs: Sequence[Any], renamers: Sequence[Renamer]) -> Any:
    """Inputs, constants and operators of all graphs, with other names."""
    joined, seen = onnx.GraphProto(name=graphs[0].name), set()
    for member, (graph, rename) in enumerate(zip(graphs, renamers, strict=True)):
        _rename_all(graph, rename)
        for entry in graph.input:
            if entry.name not in seen:
                seen.add(entry.name)
                for dimension in entry.type.tensor_type.shape.dim[:1] if entry.name.startswith("mask_") else ():
                    dimension.dim_param = f"masks_{member}"
                joined.input.append(entry)
        joined.initializer.extend(graph.initializer)
        joined.node.extend(graph.node)
    return joined


def _rename_all(graph: Any, rename: Renamer) -> None:
    """Rename all that operators take and give, but for the graph's own outputs; also inside of control flow."""
    for node in graph.node:
        node.name = rename(node.name)
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        for inner in (one for attribute in node.attribute for one in (attribute.g, *attribute.graphs)):
            _rename_all(inner, rename)
            for entry in inner.output:
                entry.name = rename(entry.name)
    for entry in (*graph.input, *graph.initializer):
        entry.name = rename(entry.name)


def _as_file(like: Any, graph: Any) -> bytes:
    """Serialize a graph as a model of the same version."""
    del like.graph.node[:], like.graph.initializer[:]
    like.graph.CopyFrom(graph)
    return bytes(like.SerializeToString(deterministic=True))


def _verify(ensemble: Graph, members: Sequence[Graph]) -> None:
    """Compare an ensemble with its members, in eval mode and under the masks that each gets.

    Raises:
        CompileError: they differ.
    """
    images = np.random.default_rng(0).random((_CHECKED_IMAGES, *ensemble.spec.image), np.float32)
    alone_SMBC = np.stack([one.sample(images, _CHECKED_PASSES) for one in members], axis=1)
    mean_BC = np.mean([one.predict(images) for one in members], axis=0)
    difference = max(
        float(np.abs(ensemble.sample(images, _CHECKED_PASSES * len(members)) - np.concatenate(alone_SMBC)).max()),
        float(np.abs(ensemble.predict(images) - mean_BC).max()),
    )
    if not difference <= _TOLERANCE:
        raise CompileError(f"the joint graph differs from its members by {difference:.2g} of a probability")
