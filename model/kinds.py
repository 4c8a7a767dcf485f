"""NumPy arrays and torch tensors: functions give what they get. torch is imported by whoever has a tensor, not here."""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ArrayOrTensor: TypeAlias = "np.ndarray | Tensor"


def is_tensor(values: ArrayOrTensor) -> bool:
    """Whether values are a torch tensor."""
    return not isinstance(values, np.ndarray) and type(values).__module__.partition(".")[0] == "torch"


def as_array(values: ArrayOrTensor) -> np.ndarray:
    """Return values as an array, without their gradients."""
    return np.asarray(values.detach().cpu().numpy() if is_tensor(values) else values)  # type: ignore[union-attr]


def like(values: ArrayOrTensor, array: np.ndarray) -> Any:
    """Return an array as a tensor if `values` are one."""
    if not is_tensor(values):
        return array
    import torch  # noqa: PLC0415 - whoever has a tensor has torch

    return torch.from_numpy(array)
