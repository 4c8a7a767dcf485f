"""Compiles a network with dropout to a graph whose masks are inputs, and checks that it computes the same."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.chain import Chain, run
from model.graph import MAIN, PREFIX, Graph, GraphSpec
from model.masks import MaskRange
from model.network.live import LiveNetwork
from model.network.quiet import quiet
from model.network.tracing import CompileError, MaskedNetwork, error_line, trace
from model.network.twins import with_own_buffers
from model.session import OPSET

_CHECKED_MASKS = 32
_CHECKED_TOGETHER = 5  # images
_CHECKED_SEED = 2**64 - 20  # not one that somebody would choose
_TOLERANCE = 1e-4  # largest accepted difference from torch, relative to the largest logit


@dataclass(frozen=True)
class Compiled:
    """A compiled network.

    Attributes:
        spec: what the graph takes, and how it is run.
        files: contents of the graph's files, by name.
        difference: largest difference from torch over eval mode and 32 masks, relative to the largest logit.
        chain: the layers from `Graph.units` to the logits, for moment propagation; None if they are something else
            than linear layers, ReLU and dropout in sequence.
        no_chain: why there is no chain; None if there is one.
    """

    spec: GraphSpec
    files: dict[str, bytes]
    difference: float
    chain: Chain | None = None
    no_chain: str | None = None

    def graph(self) -> Graph:
        """The graph, ready to run."""
        return Graph(self.spec, self.files)


def compile_network(module: nn.Module, example_image: Tensor | np.ndarray) -> Graph:
    """Compile a network to a graph that needs no torch.

    Args:
        module: from images (B, C, H, W) to logits (B, K). It is not changed, and its train/eval mode does not matter.
        example_image: a float32 image, (C, H, W) or (1, C, H, W), for the shapes and for the check.

    Returns:
        A graph with `predict`, `sample`, `sample_until` and `estimate`.

    Raises:
        CompileError: the network can't be recorded, reaches no dropout, uses dropout that no mask can replace, does not
            return logits, or the graph computes something else; the message says what to change.
    """
    return compile_to_files(module, example_image).graph()


def compile_to_files(module: nn.Module, example_image: Tensor | np.ndarray) -> Compiled:
    """Compile a network to the files of a graph; see `compile_network`."""
    image_1 = _example(module, example_image)
    module = with_own_buffers(module)
    network = trace(module, image_1)
    files, classes = _export(network, image_1)
    spec = GraphSpec(
        image=tuple(image_1.shape[1:]),
        classes=classes,
        sites=network.sites,
        batched=network.batched,
        mask_bytes=network.mask_bytes,
        shared=network.shared,
    )
    difference = _verify(Graph(spec, files), module, image_1, network.chain)
    return Compiled(spec, files, difference, network.chain, network.no_chain)


def _example(module: nn.Module, example_image: Tensor | np.ndarray) -> Tensor:
    """Return the example as (1, ...), on the CPU."""
    image = torch.as_tensor(example_image)
    if image.dtype is not torch.float32:
        raise CompileError(f"the example image must be float32, got {image.dtype}")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_cpu or (tensor.is_floating_point() and tensor.dtype is not torch.float32):
            raise CompileError(
                f"{name} is {tensor.dtype} on {tensor.device}: compile a float32 network on the CPU "
                "(copy.deepcopy(network).cpu().float())"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CompileError(f"{name} has values that are not finite")
    image = image if image.ndim == 4 else image.unsqueeze(0)
    if len(image) != 1:
        raise CompileError(f"the example must be one image, got {list(image.shape)}")
    return image.detach().clone()  # which the network may change


class _Outputs(nn.Module):
    """The masked part, and what is computed from its logits."""

    def __init__(self, network: MaskedNetwork) -> None:
        super().__init__()
        self._masked, self._batched = network.masked, network.batched

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Map values and masks to outputs (B, S, ...)."""
        outputs = self._masked(*inputs)
        if not self._batched:
            outputs = [one.unsqueeze(0) for one in outputs]
        logits_BSC = outputs[0]
        named = {"logits": logits_BSC, "probs": logits_BSC.softmax(dim=-1)}
        return named | ({"features": outputs[1]} if len(outputs) > 1 else {})


def _export(network: MaskedNetwork, image_1: Tensor) -> tuple[dict[str, bytes], int]:
    """Export both parts to ONNX: files by name, and the number of classes."""
    images_B, images_axis = image_1, {}
    if network.batched:
        images_B, images_axis = torch.cat([image_1, image_1]), {0: torch.export.Dim("images")}
    names, values, files = ["image"], (images_B,), {}
    if network.prefix is not None:
        with torch.no_grad():
            values = network.prefix(images_B.clone())
        names = [f"value_{index}" for index in range(len(values))]
        files[PREFIX] = to_onnx(network.prefix, (images_B,), (images_axis,), ["image"], names)
    masks = [torch.ones(3, *site.shape) for site in network.sites]
    names += [f"mask_{index}" for index in range(len(masks))]
    axes = (*[images_axis] * len(values), *[{0: torch.export.Dim("masks")}] * len(masks))
    outputs = _Outputs(network)
    with torch.no_grad():
        example = outputs(*values, *masks)
    files[MAIN] = to_onnx(outputs, (*values, *masks), (axes,), names, list(example))
    return files, example["logits"].shape[-1]


def to_onnx(
    module: nn.Module, inputs: tuple[Tensor, ...], axes: tuple[Any, ...], names: list[str], output_names: list[str]
) -> bytes:
    """Export a module to ONNX.

    Args:
        module: in eval mode.
        inputs: an example.
        axes: dynamic axes of the inputs, as `torch.export.export` takes them.
        names: of the inputs.
        output_names: of the outputs.

    Raises:
        CompileError: an operator can't be exported.
    """
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(module, inputs, dynamic_shapes=axes, strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=output_names,
                opset_version=OPSET,
            )
    except Exception as error:  # whatever the exporter raises
        raise CompileError(f"the network can't be exported to ONNX: {error_line(error)}") from error
    return _without_metadata(exported.model_proto)  # type: ignore[union-attr]


def _without_metadata(proto: Any) -> bytes:
    """Serialize a model without the exporter's notes, which have paths of files and differ from run to run."""
    graph = proto.graph
    for noted in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        noted.doc_string = ""
        del noted.metadata_props[:]
    del graph.value_info[:]
    return bytes(proto.SerializeToString(deterministic=True))


def _verify(graph: Graph, module: nn.Module, image_1: Tensor, chain: Chain | None) -> float:
    """Compare the graph with torch, in eval mode and under masks; and the chain in eval mode.

    Returns:
        The largest difference of logits, relative to the largest logit.

    Raises:
        CompileError: the difference is too large.
    """
    live, images = LiveNetwork(module), image_1.numpy()
    masks: MaskRange = (range(_CHECKED_MASKS), _CHECKED_SEED, "stratified")
    with torch.no_grad():
        eval_1C, masked_SC = live.predict(image_1).numpy(), live.sample(image_1, masks).numpy()
    if not np.isfinite(eval_1C).all():
        raise CompileError("the logits of the example image are not finite")
    if not masked_SC.any():
        raise CompileError(
            "all logits of the example image are 0, so that nothing can be checked: load trained weights"
        )
    others = np.random.default_rng(0).random((_CHECKED_TOGETHER - 1, *images.shape[1:]), np.float32)
    together = np.concatenate([images, others])
    alone_SBC = np.concatenate([graph.logits(image[None], masks) for image in together], axis=1)
    differences = {
        "eval mode": _difference(graph.logits(images), eval_1C[:, None]),
        "masks": _difference(graph.logits(images, masks), masked_SC[:, None]),
        "several images at once": _difference(graph.logits(together, masks), alone_SBC),
    }
    if chain is not None:
        logits_C = run((*chain.before, *chain.after), graph.units(images)[0])
        differences["the layers for moments"] = _difference(logits_C, eval_1C[0])
    for name, difference in differences.items():
        if not difference <= _TOLERANCE:
            raise CompileError(
                f"the graph differs from torch in {name} by {difference:.2g} of the largest logit: the network "
                "computes something that depends on more than an image and masks, for example random numbers, other "
                "images, its own mode, or a tensor that is changed in place after its use"
            )
    return max(differences.values())


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / max(float(np.abs(expected).max()), 1e-6))
