"""What only a process of its own shows: its peak of memory, and what it imports."""

import json
import subprocess
import sys

import pytest
import torch
from server import ROOT
from torch import nn

from model import save_compiled
from model.network import compile_to_files

SNEAKER = ROOT / "model" / "pretrained" / "examples" / "6.png"

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


@pytest.fixture(scope="module")
def without_extras() -> dict[str, tuple[int, str, str]]:
    """Exit status, output and errors of commands where no extra is installed."""
    script = [sys.executable, str(ROOT / "tests" / "without_extras.py"), str(SNEAKER)]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return {name: tuple(printed) for name, printed in json.loads(ran.stdout).items()}


def test_live_network_bounds_its_memory():
    script = """
import torch
from pathlib import Path
from model import MLPConfig, MonteCarloDropout, build_mlp
torch.set_num_threads(1)
mc = MonteCarloDropout(build_mlp(MLPConfig()))
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
mc.sample(torch.rand(1, 1, 28, 28), samples=2)
before = peak()
mc.sample(torch.rand(256, 1, 28, 28), samples=1000)
print(peak() - before)
before = peak()
mc.sample(torch.rand(1, 1, 28, 28), samples=100_000)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    many_images, many_samples = map(float, done.stdout.split())
    assert many_images < 200  # MB; a full (S, B, H) float32 tensor alone would take 262
    assert many_samples < 60  # MB; a full (S, H) float32 tensor alone would take 102


def test_graph_bounds_its_memory():
    """Masks of all samples would take 41 MB, and their activations for all images 33 MB."""
    script = """
import numpy as np
from pathlib import Path
import model.graph
model.graph._CHUNK_BYTES = model.graph._BATCH_BYTES = model.graph._CACHED_BYTES = 2**20
from model import load_artifact
graph = load_artifact().engine
images = np.random.default_rng(0).random((64, 1, 28, 28), np.float32)
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
graph.sample(images[:1], 1000)
before = peak()
graph.sample(images[:1], 20_000)
graph.sample(images, 500)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 20  # MB


def test_predict_and_the_service_need_no_extra(without_extras):
    status, printed, _ = without_extras["predict"]
    assert status == 0
    assert f" {SNEAKER}  sneaker " in printed


@pytest.mark.parametrize(("command", "extra"), [("bulk", "bulk"), ("train", "train"), ("evaluate", "train")])
def test_a_missing_extra_is_named_in_one_line(without_extras, command, extra):
    status, printed, errors = without_extras[command]
    assert (status, printed) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"mcd {command}: ")
    assert line.endswith(f" is not installed: pip install 'mcd[{extra}]'")


def test_loading_and_predicting_imports_no_torch():
    code = (
        "import sys, numpy as np; from model import load_artifact, summarize; "
        "artifact = load_artifact(); artifact.engine.estimate(np.zeros((1, 1, 28, 28), np.float32)); "
        "artifact.moments.predict(np.zeros((1, 1, 28, 28), np.float32)); "
        "sys.exit(any(name.split('.')[0] in ('torch', 'torchvision', 'onnx') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_moments_of_a_network_of_others_import_no_torch(tmp_path):
    layers = [nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2)]
    save_compiled(tmp_path, compile_to_files(nn.Sequential(*layers), torch.rand(1, 4, 4)), {"classes": ["a", "b"]})
    code = (
        "import sys, numpy as np; from model import load_artifact; "
        "moments = load_artifact(sys.argv[1]).moments.predict(np.ones((2, 1, 4, 4), np.float32)); "
        "assert np.allclose(moments.mean.sum(axis=1), 1); "
        "sys.exit(any(name.split('.')[0] in ('torch', 'torchvision', 'onnx') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)


def test_shim_is_needed_with_a_cpu_only_torch() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch is built with CUDA, as PyPI's torchvision is")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_IMPORT], capture_output=True, text=True, timeout=120, check=False
    )
    if done.stdout == "imported\n":
        pytest.skip("this torchvision's extension loads")
    assert done.stdout == "the extension can't load\noperator torchvision::nms does not exist\n", done.stderr


def test_a_network_of_torchvision_can_be_adopted_whatever_torch_is_built_for():
    script = """
from training.adopt.networks import load_network
print(type(load_network("torchvision.models:squeezenet1_1", '{"num_classes": 3}')).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "SqueezeNet\n", done.stderr
