import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

# Whether torchvision's C++ extension loads, and what becomes of a plain import.
PLAIN_IMPORT = """
import importlib.util
from pathlib import Path

import torch

[extension] = Path(importlib.util.find_spec("torchvision").origin).parent.glob("_C.*")
try:
    torch.ops.load_library(extension)
except OSError:
    print("the extension can't load")
try:
    import torchvision
except RuntimeError as error:
    print(error)
else:
    print("imported")
"""

USE = """
import sys

import torch
from PIL import Image

from training.vision import torchvision

data = torchvision.datasets.FashionMNIST(sys.argv[1], train=False, transform=torchvision.transforms.ToTensor())
for image_1HW, label in data:
    print(label, image_1HW.dtype, tuple(image_1HW.shape), (image_1HW * 255).round().int().unique().tolist())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_data_sets_and_transforms_are_usable(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        pixels = bytes([7]) * 784 + bytes([255]) * 784
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2, 28, 28) + pixels)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes([9, 0]))
    done = python(USE, str(tmp_path))
    assert done.stdout.splitlines() == [
        "9 torch.float32 (1, 28, 28) [7]",
        "0 torch.float32 (1, 28, 28) [255]",
    ], done.stderr


def test_shim_is_needed_with_a_cpu_only_torch() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch is built with CUDA, as PyPI's torchvision is")
    done = python(PLAIN_IMPORT)
    if done.stdout == "imported\n":
        pytest.skip("this torchvision's extension loads")
    assert done.stdout == "the extension can't load\noperator torchvision::nms does not exist\n", done.stderr
