"""Attention with explicit weights, so that masks can replace their dropout."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def attend(  # noqa: PLR0913, PLR0917 - as torch calls it
    drop: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    """Compute drop(softmax(q k^T scale + attn_mask)) v (Vaswani et al. 2017, section 5.4).

    Args:
        drop: applies dropout to the weights (..., L, S).
        query: (..., L, E).
        key: (..., S, E).
        value: (..., S, V).
        attn_mask: what is added to the scores; where Booleans are False, a weight is 0.
        is_causal: whether position l attends to positions up to l only.
        scale: 1 / sqrt(E) by default.
        enable_gqa: whether several heads of the query share one of key and value.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (one.repeat_interleave(groups, dim=-3) for one in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return drop(scores.softmax(dim=-1)) @ value
