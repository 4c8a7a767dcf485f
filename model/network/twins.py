"""Copies of a network that share its parameters but have a train/eval mode of their own."""

from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def eval_twin(module: nn.Module, training: Collection[str] = ()) -> nn.Module:
    """Copy the tree of modules; parameters, buffers and hooks are those of the original.

    Args:
        module: the network; neither it nor its mode is changed.
        training: paths of modules whose own flag is in train mode, though not that of their children.
    """
    return _copy(module, "", training, {})


def with_own_buffers(module: nn.Module) -> nn.Module:
    """Copy the tree of modules with copies of the buffers, which a forward pass may change."""
    twin = eval_twin(module)
    copies: dict[int, Tensor] = {}
    for inner in twin.modules():
        inner.__dict__["_buffers"] = {
            name: None if buffer is None else copies.setdefault(id(buffer), buffer.clone())
            for name, buffer in inner._buffers.items()  # noqa: SLF001 - named_buffers leaves out None and shared ones
        }
    return twin


def _copy(module: nn.Module, path: str, training: Collection[str], copies: dict[int, nn.Module]) -> nn.Module:
    if id(module) in copies:
        return copies[id(module)]
    twin: nn.Module = object.__new__(type(module))  # a GraphModule's own `__new__` would make another class
    copies[id(module)] = twin
    twin.__dict__.update(module.__dict__)
    twin.__dict__["training"] = path in training
    twin.__dict__["_modules"] = {
        name: None if child is None else _copy(child, f"{path}.{name}" if path else name, training, copies)
        for name, child in module._modules.items()  # noqa: SLF001 - named_children lists a shared module only once
    }
    return twin


def attention_modules(module: nn.Module, image_1: Tensor) -> set[str]:
    """Find the modules that call attention with dropout: paths of modules whose forward calls it in train mode only.

    Attention drops its weights inside one operator, and in eval mode its probability is 0. These modules must be in
    train mode, so that the probability is known.
    """
    twin = eval_twin(module)
    running: list[str] = []
    for path, inner in twin.named_modules(remove_duplicate=False):
        inner.__dict__["_forward_pre_hooks"] = OrderedDict(inner._forward_pre_hooks)  # noqa: SLF001
        inner.__dict__["_forward_hooks"] = OrderedDict(inner._forward_hooks)  # noqa: SLF001
        inner.register_forward_pre_hook(lambda *_, path=path: running.append(path), prepend=True)
        inner.register_forward_hook(lambda *_: running.pop() and None)
    found: set[str] = set()
    with _AttentionCalls(lambda: found.add(running[-1])), torch.no_grad(), without_fused_attention():
        twin(image_1.clone())  # which the module may change
    return found


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Let `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` call single operators, as they do in train mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _AttentionCalls(TorchFunctionMode):
    """Calls a function at each use of attention."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (nn.functional.scaled_dot_product_attention, nn.functional.multi_head_attention_forward):
            self._note()
        return function(*args, **(kwargs or {}))
