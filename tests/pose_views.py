"""Small views for poses, of random weights."""

import torch
from torch import nn

from model.network.compile import to_onnx
from model.poses import PoseView


def view(shape: tuple[int, int, int] = (1, 28, 28), outputs: int = 3) -> PoseView:
    """One for images of a shape, (C, H, W)."""
    torch.manual_seed(5)
    network = nn.Sequential(nn.Conv2d(shape[0], 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(outputs))
    example_B = torch.rand(2, *shape)
    network(example_B)
    content = to_onnx(network.eval(), (example_B,), ({0: torch.export.Dim("images")},), ["image"], ["logits"])
    return PoseView(content, 0.5, 2.0, 3.0, {"shift, pixels": 2})
