"""Networks of torchvision with dropout, for RGB images of 32 x 32 pixels and ten classes."""

import torch
from torch import Tensor, nn

from training.vision import torchvision

SIDE, CLASSES = 32, tuple("abcdefghij")
# What `mcd adopt` is given: who makes the network, and with which arguments.
NETWORKS = {
    "resnet18": ("architectures:resnet18_with_dropout", {}),
    "vit": (
        "torchvision.models:VisionTransformer",
        {
            "image_size": SIDE, "patch_size": 8, "num_layers": 3, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64,
            "dropout": 0.1, "attention_dropout": 0.1, "num_classes": len(CLASSES),
        },
    ),
    "densenet121": ("torchvision.models:densenet121", {"drop_rate": 0.1, "num_classes": len(CLASSES)}),
}  # fmt: skip


def resnet18_with_dropout() -> nn.Module:
    network = torchvision.models.resnet18(num_classes=len(CLASSES))
    network.fc = nn.Sequential(nn.Dropout(0.4), network.fc)
    return network


def randomize(network: nn.Module, images_B: Tensor) -> nn.Module:
    """Random weights under which images differ: torchvision's ViT has zeros in its last layer, others no statistics."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        for _ in range(3):
            network.train()(images_B)  # statistics of batch norm
    return network.eval()
