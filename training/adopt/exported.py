"""Networks that `torch.export` saved: its operators as a module whose dropout follows train and eval mode again."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from model.network.quiet import quiet
from model.network.tracing import error_line
from training.adopt.errors import NetworkError

SUFFIX = ".pt2"
_ATEN = torch.ops.aten
_DROPOUT: dict[Any, type[nn.Module]] = {
    _ATEN.dropout.default: nn.Dropout,
    _ATEN.dropout_.default: nn.Dropout,
    _ATEN.alpha_dropout.default: nn.AlphaDropout,
    _ATEN.alpha_dropout_.default: nn.AlphaDropout,
    _ATEN.feature_alpha_dropout.default: nn.FeatureAlphaDropout,
    _ATEN.feature_alpha_dropout_.default: nn.FeatureAlphaDropout,
}
_CHANNEL_DROPOUT = {_ATEN.feature_dropout.default, _ATEN.feature_dropout_.default}
_OF_CHANNELS: dict[int, type[nn.Module]] = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}  # by number of axes
_ATTENTION, _ATTENTION_P = _ATEN.scaled_dot_product_attention.default, 4  # the position of its probability
_BATCH_NORM, _TRAINING = _ATEN.batch_norm.default, 5
_VIEWS, _EXPANDS = {_ATEN.view.default, _ATEN.reshape.default}, {_ATEN.expand.default}
_REMEDY = 'export it with dynamic_shapes=({0: torch.export.Dim("images")},)'


class _Attention(nn.Module):
    """Attention whose dropout follows train and eval mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, **options: Any) -> Tensor:
        """Compute softmax(q k^T scale + attn_mask) v; see `torch.nn.functional.scaled_dot_product_attention`."""
        p = self.p if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, p, **options)


def load_exported(path: Path) -> nn.Module:
    """Read a network that `torch.export.save` wrote, in eval mode.

    torch reads parts of such a file with pickle, which can run code: it must come from a source that you trust.

    Args:
        path: the file; the network may have been exported in train or in eval mode, with any number of images or one.

    Raises:
        NetworkError: the file can't be read, or the network takes something else than images, or a fixed number of
            images above 1.
    """
    try:
        with quiet():
            program = torch.export.load(path)
    except OSError as error:
        raise NetworkError(f"{path}: expected a readable file, got {error.strerror or error}") from error
    except Exception as error:  # whatever torch.export raises
        raise NetworkError(
            f"{path}: expected a network that torch.export.save of torch {torch.__version__} or older wrote, got a "
            f"file that can't be read ({error_line(error)})"
        ) from error
    return from_program(program, str(path))


def from_program(program: ExportedProgram, name: str) -> nn.Module:
    """Make a module of an exported network; see `load_exported`.

    Args:
        program: the network.
        name: what messages call it.
    """
    module = program.module(check_guards=False)
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    outputs = _outputs(graph)
    shape: tuple[Any, ...] = (
        inputs[0].meta["val"].shape if inputs and isinstance(inputs[0].meta.get("val"), Tensor) else ()
    )
    if len(inputs) != 1 or len(shape) != 4 or len(outputs) != 1:
        raise NetworkError(
            f"{name}: the network must take images (B, C, H, W) and return logits alone, but has {len(inputs)} inputs "
            f"and {len(outputs)} outputs: export a module with one of each"
        )
    is_fixed = isinstance(shape[0], int)
    if is_fixed and shape[0] != 1:
        raise NetworkError(f"{name}: the network was exported for {shape[0]} images at once: {_REMEDY}")
    if is_fixed:
        _free_number(graph, inputs[0])
    for node in list(graph.nodes):
        _restore_modes(module, node, name)
    (logits,) = _outputs(graph)
    graph.output_node().args = (logits,)
    _restore_last_linear(module, logits)
    graph.set_codegen(fx.graph.CodeGen())
    graph.eliminate_dead_code()
    network = fx.GraphModule(module, graph).eval()
    expected = [size if isinstance(size, int) else None for size in shape[1:]]
    network.register_forward_pre_hook(lambda _, images: _check_shape(images[0], expected))
    if is_fixed:
        _check_number(network, expected, name)
    return network


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    found: list[fx.Node] = tree_leaves(graph.output_node().args)
    return found


def _free_number(graph: fx.Graph, image: fx.Node) -> None:
    """Let the sizes of a network that was recorded with one image follow the number of images."""
    with graph.inserting_after(image):
        number = graph.call_function(_ATEN.sym_size.int, (image, 0))
    of_images = {image}
    for node in graph.nodes:
        if not of_images.isdisjoint(node.all_input_nodes):
            of_images.add(node)
        is_sized = node.target in _EXPANDS or (node.target in _VIEWS and node in of_images)
        if is_sized and node.args[1][:1] == [1]:
            node.args = (node.args[0], [number, *node.args[1][1:]], *node.args[2:])


def _check_number(network: fx.GraphModule, shape: list[int | None], name: str) -> None:
    """Run two images through a network that was recorded with one.

    Raises:
        NetworkError: its sizes don't follow the number of images.
    """
    refusal = f"{name}: the network was exported with one image, and its sizes don't follow their number: {_REMEDY}"
    try:
        with torch.no_grad():
            logits_2C = network(torch.zeros(2, *(size or 1 for size in shape)))
    except RuntimeError as error:
        raise NetworkError(refusal) from error
    if len(logits_2C) != 2:
        raise NetworkError(refusal)


def _restore_modes(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Replace an operator that was recorded in one mode by a layer, or by the operator in eval mode."""
    arguments = cast("tuple[Any, ...]", node.args)
    if node.target in _DROPOUT or node.target in _CHANNEL_DROPOUT:
        source, p = arguments[:2]
        of_channels = _OF_CHANNELS.get(source.meta["val"].ndim, nn.Dropout2d)
        kind = of_channels if node.target in _CHANNEL_DROPOUT else _DROPOUT[node.target]
        _replace(module, node, kind(p, inplace=node.target._schema.is_mutable), (source,), {})  # type: ignore[union-attr] # noqa: SLF001
    elif node.target is _ATTENTION and (p := _argument(node, _ATTENTION_P, "dropout_p", default=0.0)) > 0:
        named = dict(node.kwargs)
        named.pop("dropout_p", None)
        named |= dict(zip(("is_causal",), arguments[_ATTENTION_P + 1 :], strict=False))
        mask = _argument(node, 3, "attn_mask", default=None)
        named.pop("attn_mask", None)
        _replace(module, node, _Attention(p), (*arguments[:3], mask), named)
    elif node.target is _BATCH_NORM:
        node.args = (*arguments[:_TRAINING], False, *arguments[_TRAINING + 1 :])
    elif "batch_norm" in str(node.target) and _argument(node, _TRAINING, "training", default=False) is True:
        raise NetworkError(
            f"{name}: the network was exported in train mode, and its batch norm can't be set to eval mode any more: "
            "export it in eval mode, or without run_decompositions"
        )
    elif node.target is _ATEN.add_.Tensor and cast("fx.Node", arguments[0]).op == "get_attr" and not node.users:
        module.graph.erase_node(node)  # batch norm counts batches in train mode


def _argument(node: fx.Node, place: int, name: str, *, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _replace(
    module: fx.GraphModule, node: fx.Node, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Compute a node by a layer, named after the module that it was recorded in."""
    stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    path = stack[-1] if stack and not stack[-1].startswith("_") else ""
    name = path or type(layer).__name__.lower().strip("_")
    taken = {str(other.target) for other in module.graph.nodes if other.op == "call_module"}
    used = {str(other.target).rpartition(".")[0] for other in module.graph.nodes if other.op == "get_attr"}
    if any(other == name or other.startswith(f"{name}.") for other in taken | used):
        name = f"{name}.{type(layer).__name__.lower().strip('_')}"
    while name in taken:
        name += "_"
    module.add_submodule(name, layer)
    with module.graph.inserting_before(node):
        called = module.graph.call_module(name, arguments, named)
    called.meta = node.meta
    node.replace_all_uses_with(called)
    module.graph.erase_node(node)


def _restore_last_linear(module: fx.GraphModule, node: fx.Node) -> None:
    """Make the operator that yields the logits a layer again, so that dropout can be inserted before it."""
    if node.target is not _ATEN.linear.default:
        return
    source, weight, *biases = cast("tuple[fx.Node, ...]", node.args)
    name = str(weight.target).removesuffix(".weight")
    if weight.op != "get_attr" or name == str(weight.target) or list(module.get_submodule(name).children()):
        return
    layer = nn.Linear(1, 1, bias=bool(biases))
    layer.weight = module.get_parameter(str(weight.target))
    if biases:
        layer.bias = module.get_parameter(str(biases[0].target))
    layer.out_features, layer.in_features = layer.weight.shape
    module.set_submodule(name, layer)
    with module.graph.inserting_before(node):
        called = module.graph.call_module(name, (source,))
    called.meta = node.meta
    node.replace_all_uses_with(called)
    module.graph.erase_node(node)


def _check_shape(images_B: Tensor, expected: list[int | None]) -> None:
    """Compare images with those that the network was exported for.

    Raises:
        ValueError: another shape.
    """
    actual = list(images_B.shape[1:])
    if len(actual) != len(expected) or any(
        size not in (None, other) for size, other in zip(expected, actual, strict=True)
    ):
        wanted = " x ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"it was exported for images of {wanted} (channels, height, width): set --channels and --size")
