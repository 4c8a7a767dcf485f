import struct
from pathlib import Path

import torch

from training.vision import torchvision


def test_data_sets_and_transforms_are_usable(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        pixels = bytes([7]) * 784 + bytes([255]) * 784
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2, 28, 28) + pixels)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes([9, 0]))
    data = torchvision.datasets.FashionMNIST(tmp_path, train=False, transform=torchvision.transforms.ToTensor())
    for (image_1HW, label), expected in zip(data, [(7, 9), (255, 0)], strict=True):
        assert (image_1HW.dtype, image_1HW.shape) == (torch.float32, (1, 28, 28))
        assert ((image_1HW * 255).round().int().unique().tolist(), label) == ([expected[0]], expected[1])
