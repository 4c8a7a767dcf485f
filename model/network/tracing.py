"""Finds the dropout of any network, and rewrites its computation so that the masks are inputs.

`torch.export` records a network as a graph of operators in which dropout stays visible. Each dropout becomes a product
with a mask. The part before the first mask runs once for an image, the other part once for each mask.
"""

import inspect
import math
import operator
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from model.chain import Affine, Chain, FixedAffine, Stage
from model.graph import Site
from model.network.dropout_mode import NO_DROPOUT, ONE_LOGIT, DropoutError, DropoutMode, refuse_unmaskable
from model.network.quiet import quiet
from model.network.twins import attention_modules, eval_twin, without_fused_attention

_ATEN = torch.ops.aten
_DROPOUT = {_ATEN.dropout.default, _ATEN.dropout_.default}
_CHANNEL_DROPOUT = {_ATEN.feature_dropout.default, _ATEN.feature_dropout_.default}
_ATTENTION = _ATEN.scaled_dot_product_attention.default
_RECURRENT = {_ATEN.lstm.input, _ATEN.gru.input, _ATEN.rnn_tanh.input, _ATEN.rnn_relu.input}
_LAYERS, _DROPPED = 4, 5  # positions of their arguments: number of layers, and probability of dropout between them
_PROBABILITIES = {
    _ATEN.sigmoid.default: "sigmoid",
    _ATEN.log_sigmoid.default: "log_sigmoid",
    _ATEN.softmax.int: "softmax",
    _ATEN.log_softmax.int: "log_softmax",
}
_RESHAPES = {_ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints, _ATEN.contiguous.default}
_BATCH_NORM = _ATEN.batch_norm.default
_RELU = {_ATEN.relu.default, _ATEN.relu_.default}
_UNCHANGED = {_ATEN.clone.default, _ATEN.alias.default} | _RESHAPES  # units of an image, in the same order
_SIZE = _ATEN.sym_size.int
# Operators that treat the rows of a matrix (rows, features) alone: they also take (images, masks, features).
_ROW_WISE = {_ATEN.linear.default, _ATEN.dropout.default}.union(
    getattr(_ATEN, name).default
    for name in ("relu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "elu", "leaky_relu", "mish", "relu6", "clone")
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SPLIT_FLOPS = 10**6  # a first part that costs more is computed once, also if the masks are processed in chunks


class CompileError(ValueError):
    """A network that can't be compiled; the message has the reason and, where it is known, a remedy."""


class NoDropoutError(CompileError):
    """A network that reaches no dropout of p > 0."""


@dataclass(frozen=True)
class MaskedNetwork:
    """A network whose masks are inputs: for each site (S, *shape), with values of 0 or 1 / (1 - p).

    Attributes:
        sites: the uses of dropout with p > 0, in the order of execution.
        prefix: from images to the values that the masked part needs; None if `masked` computes them.
        masked: from images (1, ...), or the values of `prefix`, and the masks to logits (S, K), and the input of the
            last linear layer (S, F) if there is one. If `batched`, from images (B, ...) to (B, S, K) and (B, S, F).
        batched: whether several images can be computed together.
        shared: fraction of the operations of an eval-mode forward pass that is done once for all masks.
        mask_bytes: memory that the masked part needs for each mask.
        chain: the layers from the one value of `prefix`, or from the image, to the logits, if they are linear layers,
            ReLU and dropout in sequence; None otherwise.
        no_chain: why there is no chain; None if there is one.
    """

    sites: tuple[Site, ...]
    prefix: fx.GraphModule | None
    masked: nn.Module
    batched: bool
    shared: float
    mask_bytes: int
    chain: Chain | None
    no_chain: str | None


def trace(module: nn.Module, image_1: Tensor) -> MaskedNetwork:
    """Rewrite a network so that its masks are inputs.

    Args:
        module: from images (B, ...) to logits (B, K); it is not changed, and its mode does not matter.
        image_1: an example of shape (1, ...).

    Raises:
        CompileError: the network can't be recorded, has no dropout or dropout that no mask can replace, or does not
            return logits.
    """
    recorded = _record(module, image_1)
    rewriter = _Rewriter(recorded)
    prefix, masked = rewriter.prefix(), rewriter.masked()
    ones = [torch.ones(1, *site.shape, dtype=image_1.dtype, device=image_1.device) for site in rewriter.sites]
    shared_flops, values = _count_flops(prefix, (image_1.clone(),))
    masked_flops, _ = _count_flops(masked, (*values, *ones))
    of_image, of_values = rewriter.chain(from_image=True), rewriter.chain(from_image=False)
    is_split = shared_flops > (_SPLIT_FLOPS if rewriter.batched else 0)
    is_split = is_split or (isinstance(of_values, Chain) and not isinstance(of_image, Chain))
    chain = of_values if is_split else of_image
    return MaskedNetwork(
        sites=tuple(rewriter.sites),
        prefix=prefix if is_split else None,
        masked=masked if is_split else _Joined(prefix, masked),
        batched=rewriter.batched,
        shared=shared_flops / max(shared_flops + masked_flops, 1),
        mask_bytes=rewriter.mask_bytes(),
        chain=chain if isinstance(chain, Chain) else None,
        no_chain=chain if isinstance(chain, str) else None,
    )


def _record(module: nn.Module, image_1: Tensor) -> fx.GraphModule:
    """Record the operators for any number of images; attention is recorded with its probability of dropout."""
    inputs = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    ]
    if len(inputs) != 1:
        raise CompileError(f"the network must have one input, the images; its forward takes {', '.join(inputs)}")
    try:
        refuse_unmaskable(module)
    except TypeError as error:
        raise CompileError(str(error)) from error
    try:
        recorder = _Recorder(eval_twin(module, attention_modules(module, image_1)))
    except Exception as error:  # whatever the network raises
        raise CompileError(
            f"the network fails on an image of shape {list(image_1.shape)}: {error_line(error)}"
        ) from error
    images_2 = torch.cat([image_1, image_1.flip(-1)])
    try:
        with torch.no_grad(), without_fused_attention(), quiet():
            program = torch.export.export(
                recorder, (images_2,), dynamic_shapes=({0: torch.export.Dim("images")},), strict=False
            )
    except CompileError:
        raise
    except DropoutError as error:
        raise CompileError(str(error)) from error
    except Exception as error:  # whatever torch.export raises
        raise CompileError(
            "the network can't be recorded by torch.export: its control flow must not depend on the values of the "
            f"images, nor its shapes on their number, which is images.shape[0], not len(images) ({error_line(error)})"
        ) from error
    return program.module(check_guards=False)


class _Recorder(nn.Module):
    """Runs a network with dropout in train mode, and everything else in eval mode.

    In eval mode dropout returns its input itself, and torch.export can't tell the two apart: what follows the input
    would seem to follow dropout. In train mode it returns another tensor.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_B: Tensor) -> Tensor:
        """Compute logits (B, K)."""
        with DropoutMode(_drop):
            logits_BC = self.network(images_B)
        if not isinstance(logits_BC, Tensor):
            raise CompileError(f"the network must return one tensor of logits, got {type(logits_BC).__name__}")
        return logits_BC


def _drop(features: Tensor, p: float, is_channels: bool) -> Tensor:  # noqa: FBT001 - as DropoutMode calls it
    return torch.feature_dropout(features, p, True) if is_channels else torch.dropout(features, p, True)  # noqa: FBT003


def error_line(error: BaseException) -> str:
    """Type and first line of the message of an error, without colours."""
    message = _COLOURS.sub("", str(error)).strip() or "no message"
    return f"{type(error).__name__}: {message.splitlines()[0]}"


class _Joined(nn.Module):
    """Both parts of a network."""

    def __init__(self, prefix: fx.GraphModule, masked: fx.GraphModule) -> None:
        super().__init__()
        self.prefix, self.masked = prefix, masked

    def forward(self, images_B: Tensor, *masks_S: Tensor) -> tuple[Tensor, ...]:
        """Compute logits, and the input of the last linear layer, from images and masks."""
        outputs: tuple[Tensor, ...] = self.masked(*self.prefix(images_B), *masks_S)
        return outputs


class _Layout(NamedTuple):
    """Where a recorded tensor has its images: the axis, and the number of its rows for each image."""

    axis: int
    rows: int


class _Rewriter:
    """Splits a recorded network at its first masks.

    Args:
        recorded: the network as recorded.

    Attributes:
        sites: the uses of dropout.
        batched: whether the masked part treats rows of a matrix alone.

    Raises:
        CompileError: as in `trace`.
    """

    def __init__(self, recorded: fx.GraphModule) -> None:
        self._recorded = recorded
        self._nodes = list(recorded.graph.nodes)
        (self._image,) = (node for node in self._nodes if node.op == "placeholder")
        self._symbol = self._image.meta["val"].shape[0].node.expr
        ((self._output,),) = self._nodes[-1].args
        self._site_of: dict[fx.Node, int] = {}
        self.sites: list[Site] = []
        for node in self._nodes:
            if site := self._site(node):
                self._site_of[node] = len(self.sites)
                self.sites.append(site)
        self._check_random()
        self._check_output()
        self._after = _reachable(self._site_of)
        if not self.sites:
            raise NoDropoutError(NO_DROPOUT)
        if self._output not in self._after:
            raise CompileError(
                "the logits don't depend on any dropout, unless through a tensor that is changed in place, which can't "
                "be followed: change none in place"
            )
        self._values = [
            node
            for node in self._nodes
            if node not in self._after and isinstance(node.meta.get("val"), Tensor) and node.op != "get_attr"
            if any(user in self._after for user in node.users)
        ]
        self.batched = all(map(self._is_row_wise, self._after))

    def prefix(self) -> fx.GraphModule:
        """The part before the first masks: from images (B, ...) to a tuple of values."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self._nodes[:-1]:
            if node not in self._after:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in self._values))
        graph.eliminate_dead_code()
        return fx.GraphModule(self._recorded, graph)

    def masked(self) -> fx.GraphModule:
        """The other part: from values and masks to logits, and the input of the last linear layer."""
        graph = fx.Graph()
        values = {node: graph.placeholder(f"value_{index}") for index, node in enumerate(self._values)}
        masks = [graph.placeholder(f"mask_{index}") for index in range(len(self.sites))]
        rows = None if self.batched else graph.call_function(_SIZE, (masks[0], 0))
        copies: dict[fx.Node, Any] = dict(values)
        if self.batched:
            copies |= {node: graph.call_function(torch.unsqueeze, (value, 1)) for node, value in values.items()}
        expanded: dict[fx.Node, Any] = {}

        def argument(node: fx.Node) -> Any:
            """What takes the place of a node in the masked part: tensors of one image are repeated for each mask."""
            if node in self._after or (self.batched and node in values):
                return copies[node]
            if node not in expanded:
                repeated = self._repeated(graph, node, values, rows)
                if any(_changes(user, node) for user in node.users):  # an expanded tensor can't be changed in place
                    repeated = graph.call_function(torch.clone, (repeated,))
                expanded[node] = repeated
            return expanded[node]

        for node in self._nodes[:-1]:
            if node in self._site_of:
                source = _first(node)
                can_broadcast = source in copies and (self.batched or self._images(source).rows == 1)
                features = copies[source] if can_broadcast else argument(source)
                mask = masks[self._site_of[node]]
                copies[node] = graph.call_function(_multiply, (features, mask, *self._images(source)))
            elif node in self._after:
                is_same = self.batched and _keeps_shape(node)
                copies[node] = argument(_first(node)) if is_same else graph.node_copy(node, argument)
        outputs = [copies[self._output]]
        if self._output.target is _ATEN.linear.default and _first(self._output) in self._after:
            outputs.append(copies[_first(self._output)])
        graph.output(tuple(outputs))
        graph.eliminate_dead_code()
        return fx.GraphModule(self._recorded, graph)

    def _repeated(self, graph: fx.Graph, node: fx.Node, values: dict[fx.Node, fx.Node], rows: fx.Node | None) -> Any:
        """Repeat a tensor of one image for each mask; what does not depend on the images stays as it is."""
        if node.op == "get_attr":
            return graph.node_copy(node)
        if not isinstance(node.meta["val"], Tensor):
            return self._size(graph, node, rows)
        layout = self._layout(node)
        return values[node] if layout is None else graph.call_function(_expand, (values[node], rows, *layout))

    def chain(self, *, from_image: bool) -> Chain | str:
        """Read the layers from the image, or from the input of the first dropout, to the logits.

        Returns:
            The layers, or why they are not a chain of linear layers, ReLU and dropout.
        """
        start = self._image if from_image else _first(next(iter(self._site_of)))
        stages: list[Stage] = []
        relu, dropouts = False, []
        try:
            for node in self._path_from(start):
                if node in self._site_of:
                    dropouts.append((self._site_of[node], self.sites[self._site_of[node]].p))
                elif node.target in _RELU:
                    relu = True
                elif node.target is _ATEN.linear.default:
                    stages.append(Stage(relu, tuple(dropouts), self._affine(node)))
                    relu, dropouts = False, []
                elif node.target is _BATCH_NORM:
                    if not stages or relu or dropouts:
                        raise CompileError(f"moments need a linear layer directly before batch norm{_at(node)}")
                    stages[-1] = stages[-1]._replace(linear=self._normalized(stages[-1].linear, node))
            if relu or dropouts:
                raise CompileError("moments need logits that come from a linear layer")
            if sum(len(stage.dropouts) for stage in stages) < len(self.sites):
                raise CompileError("moments need all dropout in the layers that lead to the logits")
        except CompileError as error:
            return str(error)
        return Chain.of(stages)

    def _path_from(self, start: fx.Node) -> list[fx.Node]:
        """The nodes after `start` to the logits, each of which uses the one before it alone.

        Raises:
            CompileError: a node does something else than the layers of a chain.
        """
        path: list[fx.Node] = []
        node = self._output
        while node is not start:
            is_known = node.target in {_ATEN.linear.default, _BATCH_NORM} | _DROPOUT | _RELU | _UNCHANGED
            if node.op != "call_function" or not is_known:
                name = str(node.target).removeprefix("aten.").partition(".")[0]
                raise CompileError(
                    "moments need linear layers, ReLU and dropout of units from the first dropout to the logits, "
                    f"and this network also has {name}{_at(node)}"
                )
            source = _first(node)
            is_vector = node.target not in {_ATEN.linear.default, _BATCH_NORM} or source.meta["val"].ndim == 2
            if not is_vector or self._layout(node) != _Layout(0, 1) or self._layout(source) != _Layout(0, 1):
                raise CompileError(f"moments need one vector of units for each image{_at(node)}")
            others = [user for user in source.users if user is not node and isinstance(user.meta.get("val"), Tensor)]
            if any(source is not start or _changes(user, source) for user in others):
                raise CompileError(f"moments need layers in sequence, and an output is used twice{_at(source)}")
            path.append(node)
            node = source
        return path[::-1]

    def _affine(self, node: fx.Node) -> FixedAffine:
        """Copy the parameters of a linear layer."""
        weight_VU, *biases = (self._constant(node, one) for one in node.args[1:] if one is not None)
        return FixedAffine(weight_VU, biases[0] if biases else np.zeros_like(weight_VU[:, 0]))

    def _normalized(self, linear: Affine, node: fx.Node) -> FixedAffine:
        """A linear layer and the batch norm after it, in eval mode, as one: scale (W u + b - mean) + shift."""
        scale, shift, *statistics = node.args[1:5]
        mean_V, variance_V = (self._constant(node, one) for one in statistics)
        scale_V = 1 / np.sqrt(variance_V.astype(np.float64) + typing.cast("float", node.args[7]))
        if scale is not None:
            scale_V *= self._constant(node, scale)
        weight_VU, bias_V = linear.arrays()
        bias_V = scale_V * (bias_V - mean_V) + (0 if shift is None else self._constant(node, shift))
        return FixedAffine((scale_V[:, None] * weight_VU).astype(np.float32), bias_V.astype(np.float32))

    def _constant(self, node: fx.Node, argument: Any) -> np.ndarray:
        """Copy a parameter or buffer."""
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            raise CompileError(f"moments need layers whose weights are parameters{_at(node)}")
        tensor: Tensor = operator.attrgetter(str(argument.target))(self._recorded)
        return tensor.detach().numpy().copy()

    def mask_bytes(self) -> int:
        """Largest memory, in bytes, that tensors of the masked part take at once for one mask."""
        size = {node: _bytes(node.meta["val"]) for node in self._after if isinstance(node.meta.get("val"), Tensor)}
        largest = present = sum(4 * math.prod(site.shape) for site in self.sites)
        last_use = {used: node for node in self._nodes for used in node.all_input_nodes if used in size}
        for node in self._nodes:
            present += size.get(node, 0)
            largest = max(largest, present)
            present -= sum(size[used] for used in node.all_input_nodes if last_use.get(used) is node)
        return largest

    def _site(self, node: fx.Node) -> Site | None:
        """The site of a node with p > 0; None for other nodes."""
        where, arguments = _where(node), typing.cast("tuple[Any, ...]", node.args)
        if node.target in _RECURRENT and arguments[_LAYERS] > 1 and arguments[_DROPPED] > 0:
            raise CompileError(
                f"{where}: the dropout between the layers of a recurrent module can't be masked; use modules of one "
                "layer with nn.Dropout between them"
            )
        if node.target not in _DROPOUT | _CHANNEL_DROPOUT or arguments[1] == 0:
            return None
        features, p, is_seen = arguments
        if not is_seen:
            raise CompileError(f"{where}: {node.target} can't be masked; call torch.nn.functional.dropout")
        axis, rows = self._images(features)
        shape = list(features.meta["val"].shape)
        if node.target in _CHANNEL_DROPOUT:
            if axis or rows > 1:
                raise CompileError(f"{where}: dropout of channels must have the images on its first axis")
            shape = [shape[1], *(1 for _ in shape[2:])]
        else:
            del shape[axis]
            shape = [rows, *shape] if rows > 1 else shape
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise CompileError(f"{where}: the shape of a mask must not depend on the images")
        return Site(_path(node), float(p), tuple(shape))

    def _layout(self, node: fx.Node) -> _Layout | None:
        """Where a tensor has its images; None if it does not depend on their number."""
        found = [
            _Layout(axis, int(size.node.expr / self._symbol))
            for axis, size in enumerate(node.meta["val"].shape)
            if isinstance(size, torch.SymInt) and size.node.expr.has(self._symbol)
            if (size.node.expr / self._symbol).is_Integer
        ]
        symbolic = sum(isinstance(size, torch.SymInt) for size in node.meta["val"].shape)
        if symbolic != len(found) or symbolic > 1 or (found and found[0].rows > 1 and found[0].axis):
            raise CompileError(f"{_where(node)}: the images are mixed into another axis of a tensor")
        return found[0] if found else None

    def _size(self, graph: fx.Graph, node: fx.Node, rows: fx.Node | None) -> Any:
        """The size that a node computes from the number of images, with the masks in their place."""
        expression = node.meta["val"].node.expr
        if not expression.has(self._symbol):
            raise CompileError(
                f"{_where(node)}: a number is computed from the values of the images; leave it a tensor (no .item())"
            )
        factor = expression / self._symbol
        if rows is None or not factor.is_Integer:
            raise CompileError(f"{_where(node)}: a shape depends on the number of images in an unknown way")
        return rows if factor == 1 else graph.call_function(operator.mul, (rows, int(factor)))

    def _images(self, node: fx.Node) -> _Layout:
        """The layout of a tensor that is known to depend on the images."""
        layout = self._layout(node)
        if layout is None:
            raise CompileError(f"{_where(node)}: only dropout of activations can be masked, not that of parameters")
        return layout

    def _is_row_wise(self, node: fx.Node) -> bool:
        """Whether a node treats the rows of matrices (B, F) alone."""
        tensors = [node, *(one for one in node.all_input_nodes if one.op != "get_attr")]
        if not all(
            isinstance(one.meta.get("val"), Tensor) and one.meta["val"].ndim == 2
            for one in tensors
            if one.op != "output"
        ):
            return False
        if any(self._layout(one) != _Layout(0, 1) for one in tensors if one.op != "output"):
            return False
        is_dropout = node in self._site_of and node.target in _DROPOUT
        return node.op == "output" or is_dropout or node.target in _ROW_WISE or _keeps_shape(node)

    def _check_random(self) -> None:
        masked = _DROPOUT | _CHANNEL_DROPOUT | _RECURRENT | {_ATTENTION}
        for node in self._nodes:
            is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if is_random and node.target not in masked:
                raise CompileError(
                    f"{_where(node)}: {node.target} is random, and no mask can replace it; "
                    "use nn.Dropout, nn.Dropout1d, 2d or 3d, or dropout in attention"
                )

    def _check_output(self) -> None:
        value = self._output.meta.get("val")
        if not (isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()):
            raise CompileError(f"the network must return logits (images, classes), got {_shape(value)}")
        if self._layout(self._output) != _Layout(0, 1):
            raise CompileError(f"the network must return one row of logits for each image, got {_shape(value)}")
        if self._output.target in _PROBABILITIES:
            raise CompileError(
                f"the network must return logits, but ends in {_PROBABILITIES[self._output.target]}: remove it"
            )
        if value.shape[1] == 1:
            raise CompileError(ONE_LOGIT)


def _first(node: fx.Node) -> fx.Node:
    """The first argument of a node."""
    return typing.cast("fx.Node", node.args[0])


def _reachable(starts: Iterable[fx.Node]) -> dict[fx.Node, None]:
    found: dict[fx.Node, None] = dict.fromkeys(starts)
    pending = list(found)
    while pending:
        for user in pending.pop().users:
            if user not in found:
                found[user] = None
                pending.append(user)
    return found


def _keeps_shape(node: fx.Node) -> bool:
    """Whether a node only changes the shape of a tensor, and leaves it as it is."""
    return node.target in _RESHAPES and list(_first(node).meta["val"].shape) == list(node.meta["val"].shape)


def _changes(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node changes a tensor in place."""
    is_mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001
    return is_mutable and bool(node.args) and node.args[0] is source


def _path(node: fx.Node) -> str:
    """Path of the module that computes a node; empty for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].").removeprefix("network").removeprefix(".") if stack else ""


def _where(node: fx.Node) -> str:
    return _path(node) or "the network"


def _at(node: fx.Node) -> str:
    """The layer in brackets, for the end of a sentence; nothing for an operation of the network itself."""
    return f" (layer {_path(node)})" if _path(node) else ""


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _bytes(value: Tensor) -> int:
    return value.element_size() * math.prod(int(size) if isinstance(size, int) else _rows(size) for size in value.shape)


def _rows(size: torch.SymInt) -> int:
    return int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, 1)))


def _multiply(features: Tensor, mask_S: Tensor, axis: int, rows: int) -> Tensor:
    """Multiply features by masks (S, ...) along the axis that has the images."""
    if rows > 1:
        mask_S = mask_S.flatten(0, 1)
    return features * (mask_S.movedim(0, axis) if axis else mask_S)


def _expand(value: Tensor, masks: int, axis: int, rows: int) -> Tensor:
    """Repeat the value of one image for each mask."""
    if rows > 1:
        return value.unsqueeze(0).expand(masks, *value.shape).flatten(0, 1)
    return value.expand(*(masks if index == axis else size for index, size in enumerate(value.shape)))


def _count_flops(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, tuple[Tensor, ...]]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = module(*inputs)
    return int(counter.get_total_flops()), outputs
