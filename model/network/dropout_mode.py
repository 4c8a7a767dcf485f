"""Finds each use of dropout while a module runs: in layers, in functions, and inside attention."""

import functools
import types
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from model.network.attention import attend
from model.network.layers import is_dropout

_UNITS = (functional.dropout, torch.dropout, torch.dropout_)
_CHANNELS = (
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    torch.feature_dropout,
    torch.feature_dropout_,
)
_OTHERS = (
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.alpha_dropout,
    torch.feature_alpha_dropout,
)
_IN_PLACE = (torch.dropout_, torch.feature_dropout_)
_QUESTIONS = ("__get__", "size", "dim")  # ask for a tensor's shape or type, not for its values
_UNBATCHED = {functional.dropout1d: 2, functional.dropout3d: 4}  # axes of what torch takes for one example
_ATTENTION = functional.scaled_dot_product_attention
_MULTI_HEAD_ATTENTION = functional.multi_head_attention_forward

NO_DROPOUT = (
    "no dropout is reached in eval mode: it needs nn.Dropout of p > 0, or F.dropout(x, p, self.training) that is not "
    "inside `if self.training:`"
)


class DropoutError(ValueError):
    """Dropout that a product with a mask can't express; the message says what to change.

    Not a TypeError: operators such as + would take it for operands of other types.
    """


ONE_LOGIT = (
    "the network returns one number for each image, for which softmax is always 1: a classifier of two classes must "
    "have two logits, and regression is not supported"
)


def refuse_unmaskable(network: nn.Module) -> None:
    """Refuse dropout that no mask can replace.

    Raises:
        TypeError: the message names the module.
    """
    for name, module in network.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0 and not is_dropout(module):
            raise TypeError(
                f"layer {name}: {type(module).__name__} can't be masked there; use nn.Dropout or nn.Dropout1d/2d/3d"
            )
        if isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1:
            raise TypeError(
                f"layer {name}: {type(module).__name__} can't be masked there: its dropout is between its layers; use "
                "modules of one layer with nn.Dropout between them"
            )


def softmax(logits: Tensor) -> Tensor:
    """Compute probabilities; for bfloat16 in float32, because rows in bfloat16 would not sum to 1."""
    return logits.softmax(dim=-1, dtype=torch.float32 if logits.dtype is torch.bfloat16 else None)


class Drop(Protocol):
    """What takes the place of dropout."""

    def __call__(self, features: Tensor, p: float, is_channels: bool) -> Tensor:  # noqa: FBT001 - always by position
        """Return the features under dropout."""


class DropoutMode(TorchFunctionMode):
    """Calls a function in the place of each dropout of p > 0, in train and eval mode, also inside attention.

    Args:
        drop: from features, probability and whether whole channels are dropped to other features.

    The product is a new tensor: what dropout should have changed in place must not be used again.

    Raises:
        DropoutError: dropout that a product can't express is used.
    """

    def __init__(self, drop: Drop) -> None:
        super().__init__()
        self._drop = drop
        self._changed: list[Tensor] = []  # kept, so that no other tensor gets their memory

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._check_changed(function, args)
        if function in _UNITS + _CHANNELS:
            return self._on_features(function, *args, **kwargs)
        if function is _ATTENTION:
            return self._on_attention(*args, **kwargs)
        if function is _MULTI_HEAD_ATTENTION:
            with self:
                return _multi_head_attention(*args, **kwargs)
        if function in _OTHERS and (args[1:2] or [kwargs.get("p", 0.5)])[0] > 0:
            raise DropoutError(f"{function.__name__} can't be replaced by a mask; use dropout of units or channels")
        return function(*args, **kwargs)

    def _on_features(
        self,
        function: Any,
        input: Tensor,  # noqa: A002 - as torch calls it
        p: float = 0.5,
        training: bool = True,  # noqa: ARG002, FBT001, FBT002
        inplace: bool = False,  # noqa: FBT001, FBT002
        **_: object,
    ) -> Tensor:
        if p == 0:
            return input
        if input.ndim == _UNBATCHED.get(function):
            raise DropoutError(
                f"{function.__name__} of {input.ndim} axes takes the images for channels; use dropout of units, or "
                "features with one axis more"
            )
        dropped = self._drop(input, p, function in _CHANNELS)
        if inplace or function in _IN_PLACE:
            self._changed.append(input)
        return dropped

    def _on_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 - as torch calls it
        **options: Any,
    ) -> Tensor:
        if dropout_p == 0:
            return _ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, **options)
        drop = functools.partial(self._drop, p=dropout_p, is_channels=False)
        return attend(drop, query, key, value, attn_mask, is_causal, **options)

    def _check_changed(self, function: Any, args: Any) -> None:
        if not self._changed or function.__name__ in _QUESTIONS:
            return
        used = [one for arg in args for one in (arg if isinstance(arg, (tuple, list)) else [arg])]
        memory = {_memory(one) for one in used if isinstance(one, Tensor)} - {None}
        if not memory.isdisjoint(map(_memory, self._changed)):
            raise DropoutError(
                "what dropout changes in place is used again: use only the result of dropout, or inplace=False"
            )


def _memory(tensor: Tensor) -> int | None:
    """Identify a tensor's memory; None under vmap, which does not tell it."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - fake tensors have no address
    except NotImplementedError:
        return None


# The same function without its first step, which would hand the whole call to the mode again.
_multi_head_attention = types.FunctionType(
    _MULTI_HEAD_ATTENTION.__code__,
    _MULTI_HEAD_ATTENTION.__globals__ | {"has_torch_function": lambda _: False},
    argdefs=_MULTI_HEAD_ATTENTION.__defaults__,
)
