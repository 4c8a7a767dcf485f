"""Batch norm for training only: afterwards the linear layers before it contain it."""

import copy
from collections import OrderedDict

from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_eval


def add_batch_norm(network: nn.Sequential) -> nn.Sequential:
    """Normalize the input of each ReLU over the batch (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Args:
        network: layers, in which each ReLU follows a linear layer.

    Returns:
        The same layers, and before each ReLU a batch norm, named as the ReLU with "norm_" before it.
    """
    result, width = nn.Sequential(), 0
    for name, layer in network.named_children():
        if isinstance(layer, nn.ReLU):
            result.add_module(f"norm_{name}", nn.BatchNorm1d(width))
        elif isinstance(layer, nn.Linear):
            width = layer.out_features
        result.add_module(name, layer)
    return result


def fold_batch_norm(network: nn.Sequential) -> nn.Sequential:
    """Replace each linear layer and the batch norm after it by one linear layer with the same outputs in eval mode.

    Its row i is w_i g_i / s_i and its bias (b_i - m_i) g_i / s_i + h_i, for the linear layer's w and b, and the batch
    norm's running mean m and standard deviation s, weight g and bias h.

    Args:
        network: from `add_batch_norm`; it stays as it is.

    Returns:
        A copy in eval mode, with the layers and names that the network had before `add_batch_norm`.
    """
    result: list[tuple[str, nn.Module]] = []
    for name, layer in copy.deepcopy(network).eval().named_children():
        if isinstance(layer, nn.BatchNorm1d):
            before, linear = result.pop()
            result.append((before, fuse_linear_bn_eval(linear, layer)))
        else:
            result.append((name, layer))
    return nn.Sequential(OrderedDict(result))
