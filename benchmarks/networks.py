"""Time and memory of compiled networks, compared with other methods: `python -m benchmarks.networks`.

All methods take turns in one process and on one thread; medians. Writes docs/performance/networks.md and networks.png.
With `--architectures` it compiles architectures of timm instead, which takes longer, and writes architectures.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from benchmarks import example_networks, methods
from benchmarks.common import FOLDER, interleaved, machine, peak_memory, table, use_threads, write
from benchmarks.methods import EVAL, LIBRARIES, LOOP, METHODS, REPEATED, Method
from model.graph import Graph, GraphSpec
from model.network.compile import Compiled, CompileError, compile_to_files
from model.network.live import LiveNetwork
from model.network.twins import without_fused_attention

BATCHES = (1, 32)
SAMPLES = (30, 100)
BUDGET = 0.2  # seconds a method, network, batch size and number of samples
# Seconds by batch size: methods that run the whole network for each mask are left out where they are expected to take
# more.
MAX_SECONDS = {1: 8.0, 32: 4.0}
SLOW_SECONDS = 1.0  # of such a method, from which it is called twice only
MOST_SHARED = 0.9  # fraction of a network before its first mask from which masks cost little

GRAPH_EVAL, GRAPH, FRESH = "ours: graph, eval mode", "ours: graph, one seed", "ours: graph, a new seed for each call"
STATISTICS = "ours: graph, one seed, with statistics"
LIVE, COMPILED = "ours: live module", "loop of torch.compile"
OURS = (GRAPH_EVAL, GRAPH, STATISTICS, FRESH, LIVE)
WITHOUT_PASSES = (EVAL, GRAPH_EVAL, STATISTICS)  # methods that do not return the passes
CACHED = "baal, loop, cached"
OTHERS = [name for name in (REPEATED, *LIBRARIES) if name not in ("baal, replicated", "baal, loop")]
ORDER = [EVAL, *OURS, LOOP, *OTHERS, COMPILED]

ARCHITECTURES = (
    "mobilenetv3_small_100",
    "ghostnet_100",
    "efficientnet_b0",
    "densenet121",
    "regnetx_002",
    "mobilevit_xxs",
    "mixer_s32_224",
    "inception_v3",
    "convnext_atto",
    "levit_128s",
    "vgg11",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resnet18",
)
PIXELS = 224
P = 0.2  # drop_rate of the architectures

console = Console(highlight=False)

Times = dict[tuple[str, int, int], float]  # seconds by method, batch size and number of samples


class Subject(NamedTuple):
    """A network that is measured, and its graph."""

    example: example_networks.Example
    compiled: Compiled
    seconds: float  # to compile it

    @property
    def masked(self) -> float:
        """Fraction of the network that has to run for each mask."""
        return 1 - self.compiled.spec.shared


def compile_all(names: Iterable[str]) -> dict[str, Subject]:
    """Compile networks, and measure how long it takes."""
    subjects = {}
    for name in track(list(names), "compile", transient=True):
        example = example_networks.make(name)
        start = time.perf_counter()
        compiled = compile_to_files(example.network, torch.rand(example.image))
        subjects[name] = Subject(example, compiled, time.perf_counter() - start)
    return subjects


def live_method(network: nn.Module, samples: int) -> Method:
    """Sample a module as it is, image by image."""
    live = LiveNetwork(network)

    def run(images_B: Tensor) -> Tensor:
        mask_range = (range(samples), 0, "stratified")
        logits = [live.sample(images_B[index : index + 1], mask_range) for index in range(len(images_B))]
        return torch.stack(logits, dim=1).softmax(dim=-1)

    return run


class CompiledLoop:
    """`torch.compile` of one pass, of which the compiled code is kept, called in a loop.

    Attributes:
        failure: why it is missing; empty if it works.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._compiled: dict[int, Callable[[Tensor], Tensor]] = {}

    def make(self, network: nn.Module, images_B: Tensor, samples: int) -> Callable[[], Tensor] | None:
        """Compile a network for a batch, or return None where no compiler works."""
        if self.failure:
            return None
        key = id(network)
        if key not in self._compiled:
            pass_once = torch.compile(methods.in_train_mode(network), dynamic=False)
            try:
                pass_once(images_B)
            except Exception as error:  # noqa: BLE001 - whatever the compiler raises
                self.failure = (str(error).strip() or type(error).__name__).splitlines()[0]
                return None
            self._compiled[key] = pass_once
        compiled = self._compiled[key]
        return lambda: torch.stack([compiled(images_B).softmax(dim=-1) for _ in range(samples)])


def calls_of(subject: Subject, images_B: Tensor, samples: int, *, is_affordable: bool) -> dict[str, Callable[[], Any]]:
    """Each method, ready to be called."""
    network, images = subject.example.network, images_B.numpy()
    graph, seeds = subject.compiled.graph(), count(1)
    fresh = subject.compiled.graph()  # of its own: new seeds would replace the masks that the other keeps
    calls: dict[str, Callable[[], Any]] = {
        EVAL: lambda: network(images_B),
        GRAPH_EVAL: lambda: graph.predict(images),
    }
    is_split = subject.masked < 1 - MOST_SHARED
    if is_split or is_affordable:
        live = live_method(network, samples)
        calls[GRAPH] = lambda: graph.sample(images, samples)
        calls[STATISTICS] = lambda: graph.estimate(images, samples)
        calls[FRESH] = lambda: fresh.sample(images, samples, seed=next(seeds))
        calls[LIVE] = lambda: live(images_B)
    # baal's cache replaces linear layers by modules without weights, which attention reads.
    has_attention = any(isinstance(module, nn.MultiheadAttention) for module in network.modules())
    for name in (LOOP, *OTHERS):
        if is_affordable and not (name == CACHED and has_attention):
            calls[name] = _with_all_dropout(METHODS[name](network, samples), images_B)
    return calls


def _with_all_dropout(method: Method, images_B: Tensor) -> Callable[[], Tensor]:
    """Call a method without fused operators, which would leave dropout out where their module is in eval mode."""

    def run() -> Tensor:
        with without_fused_attention():
            return method(images_B)

    return run


def measure(name: str, subject: Subject, compiled_loop: CompiledLoop) -> Times:
    """Median seconds of a network by method, batch size and number of samples."""
    found = {}
    stochastic = methods.in_train_mode(subject.example.network)
    images_B = torch.rand(max(BATCHES), *subject.example.image)
    for batch in BATCHES:
        part_B = images_B[:batch].contiguous()
        pass_seconds = min(_seconds(lambda part_B=part_B: stochastic(part_B)) for _ in range(3))
        for samples in SAMPLES:
            expected = pass_seconds * samples
            calls = calls_of(subject, part_B, samples, is_affordable=expected < MAX_SECONDS[batch])
            if batch == 1 and LOOP in calls:
                compiled = compiled_loop.make(subject.example.network, part_B, samples)
                calls |= {} if compiled is None else {COMPILED: compiled}
            if batch == 1 and samples == min(SAMPLES):
                check(name, {name: call() for name, call in calls.items() if name not in WITHOUT_PASSES})
            label = f"{name}, {batch} images, {samples} samples"
            least = 3 if expected < SLOW_SECONDS else 1
            for method, median in interleaved(calls, budget=BUDGET, label=label, least=least).items():
                found[method, batch, samples] = median
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def check(network: str, results: dict[str, Tensor | np.ndarray]) -> None:
    """Compare each method's mean with that of our graph; six standard errors of two means of independent masks.

    Compared are logits up to a constant, log p minus its mean over the classes: over the masks they are nearly normal,
    while the variance of a small probability depends on few masks.
    """
    logits_SBC = {name: _centred_logits(np.asarray(result)) for name, result in results.items()}
    ours_SBC = logits_SBC[GRAPH]
    for name, theirs_SBC in logits_SBC.items():
        variance_BC = (theirs_SBC.var(axis=0) + ours_SBC.var(axis=0)) / len(theirs_SBC)
        error_BC = np.abs(theirs_SBC.mean(axis=0) - ours_SBC.mean(axis=0))
        spread = theirs_SBC.var(axis=0).sum() / ours_SBC.var(axis=0).sum()
        assert 1 / 3 < spread < 3, f"{network}: {name} has {spread:.2g} times our variance"
        assert (error_BC <= 6 * np.sqrt(variance_BC) + 1e-4).all(), f"{network}: {name} computes something else"


def _centred_logits(probs_SBC: np.ndarray) -> np.ndarray:
    logs_SBC = np.log(np.maximum(probs_SBC, np.finfo(np.float32).tiny))
    return logs_SBC - logs_SBC.mean(axis=-1, keepdims=True)


def memory_of(subjects: dict[str, Subject], found: dict[str, Times]) -> dict[tuple[str, str], float]:
    """Peak memory in MB, by network and method, each in a process of its own."""
    samples = max(SAMPLES)
    jobs = [(name, method) for name in subjects for method in (GRAPH, REPEATED) if (method, 1, samples) in found[name]]
    code = "import sys; from benchmarks.networks import print_peak; print_peak(*sys.argv[1:])"
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, method in track(jobs, "memory", transient=True):
            save(subjects[name].compiled, Path(folder))
            done = subprocess.run(
                [sys.executable, "-c", code, name, method, folder],
                capture_output=True,
                text=True,
                check=True,
                timeout=600,
            )
            peaks[name, method] = float(done.stdout)
    return peaks


def save(compiled: Compiled, folder: Path) -> None:
    """Write a compiled network to a folder."""
    for old in folder.iterdir():
        old.unlink()
    (folder / "spec.json").write_text(json.dumps(compiled.spec.to_json()))
    for name, data in compiled.files.items():
        (folder / name).write_bytes(data)


def print_peak(name: str, method: str, folder: str) -> None:
    """Print by how many MB the peak memory rises over that of an eval-mode forward of one image."""
    use_threads(1)
    samples = max(SAMPLES)
    if method == GRAPH:
        spec = GraphSpec.from_json(json.loads((Path(folder) / "spec.json").read_text()))
        graph = Graph(spec, {file.name: file.read_bytes() for file in Path(folder).glob("*.onnx")})
        images = np.random.default_rng(0).random((1, *spec.image), np.float32)
        graph.predict(images)
        before = peak_memory()
        graph.sample(images, samples)
    else:
        example = example_networks.make(name)
        images_B = torch.rand(1, *example.image)
        with torch.no_grad():
            METHODS[EVAL](example.network, 1)(images_B)
            before = peak_memory()
            METHODS[method](example.network, samples)(images_B)
    sys.stdout.write(f"{peak_memory() - before}\n")


def report(
    subjects: dict[str, Subject],
    found: dict[str, Times],
    memory: dict[tuple[str, str], float],
    failure: str,
) -> str:
    """Write the tables."""
    text = f"# Networks\n\nMade by `make bench`. {machine()}\n\n"
    text += (
        "Compiled networks and networks as torch modules against other ways to sample them. One thread; medians of\n"
        "interleaved calls. A ratio is to an eval-mode forward of the same batch in torch.\n"
    )
    for name, reason in {**methods.UNAVAILABLE, **example_networks.UNAVAILABLE}.items():
        text += f"\n{name} could not be installed and is missing: {reason}\n"
    if failure:
        text += f"\ntorch.compile found no compiler and is missing: {failure}\n"
    text += "\n![Ratios by network and method](networks.png)\n\n## The networks\n\n"
    rows = [
        [
            name,
            f"{'x'.join(map(str, subject.example.image))}",
            f"{sum(one.numel() for one in subject.example.network.parameters()):,}",
            str(len(subject.compiled.spec.sites)),
            f"{100 * subject.masked:.3g} %",
            f"{subject.seconds:.0f}",
            f"{subject.compiled.difference:.0e}",
        ]
        for name, subject in subjects.items()
    ]
    header = ["", "image", "parameters", "uses of dropout", "after the first mask", "seconds to compile", "difference"]
    text += table(header, rows) + "\n"
    text += "".join(f"- {name}: dropout {subject.example.note}\n" for name, subject in subjects.items())
    text += (
        "\nAfter the first mask: fraction of a forward pass that each mask has to compute. Difference: the largest of\n"
        "a logit from torch under the same 32 masks and in eval mode, relative to the largest logit.\n"
    )
    for batch in BATCHES:
        for samples in SAMPLES:
            text += f"\n## {batch} image{'s' if batch > 1 else ''}, {samples} masks\n\nMilliseconds (ratio):\n\n"
            rows = [
                [method, *(_cell(found[name], method, batch, samples) for name in subjects)]
                for method in ORDER
                if any((method, batch, samples) in one for one in found.values())
            ]
            text += table(["", *subjects], rows)
    limits = (
        f"A method that runs the whole network for each mask takes more than {MAX_SECONDS[1]:.0f} s for one image, "
    )
    limits += f"{MAX_SECONDS[32]:.0f} s for 32"
    text += (
        f"\n(-: left out. {limits};\n"
        "torch.compile is called with one image only.)\n\n"
        "One seed: the masks are drawn once and kept, as in a service, as far as they fit into the memory for them. A\n"
        "new seed: they are drawn in each call, as those of a live module are. Statistics: means, variances,\n"
        "entropies, mutual information and standard errors, where the other rows return the passes.\n\n"
        "torch-uncertainty finds layers of dropout only: in the ViT it leaves that of attention weights out, and it\n"
        "is called without the fused operator of torch's transformer layer, which would leave out all dropout of the\n"
        "layer. baal's cache does not work with attention. All other rows compute the same.\n"
    )
    text += "\n## Memory\n\nPeak above an eval-mode forward of one image, in MB, for one image and "
    text += f"{max(SAMPLES)} masks:\n\n"
    rows = [
        [
            method,
            *(f"{memory[name, method]:.0f}" if (name, method) in memory else "-" for name in subjects),
        ]
        for method in (GRAPH, REPEATED)
    ]
    return text + table(["", *subjects], rows)


def _cell(found: Times, method: str, batch: int, samples: int) -> str:
    seconds = found.get((method, batch, samples))
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3g} ({seconds / found[EVAL, batch, samples]:.3g})"


def draw(found: dict[str, Times]) -> None:
    """Draw the ratios for the most masks of one image, and the fewest masks of many."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    settings = ((BATCHES[0], SAMPLES[-1]), (BATCHES[-1], SAMPLES[0]))
    positions = list(range(len(found)))
    for ax, (batch, samples) in zip(axes, settings, strict=True):
        for method in ORDER[1:]:
            ratios = [
                one.get((method, batch, samples), float("nan")) / one[EVAL, batch, samples] for one in found.values()
            ]
            style = {"marker": "o", "markersize": 8} if method in OURS else {"marker": "x", "markersize": 6}
            ax.plot(ratios, positions, linestyle="", label=method, **style)
        title = f"{batch} image{'s' if batch > 1 else ''}, {samples} masks"
        ax.set(xscale="log", xlabel="eval-mode forwards in torch", title=title, yticks=positions)
        ax.set_yticklabels(list(found))
        ax.axvline(1, color="gray", linewidth=0.8)
        ax.grid(alpha=0.3)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(FOLDER / "networks.png", dpi=110)


def measure_networks() -> None:
    """Measure, print and write the comparison of methods."""
    subjects = compile_all(example_networks.available())
    compiled_loop = CompiledLoop()
    with torch.no_grad():
        found = {name: measure(name, subject, compiled_loop) for name, subject in subjects.items()}
    text = report(subjects, found, memory_of(subjects, found), compiled_loop.failure)
    write("networks.md", text)
    draw(found)
    console.print(text, markup=False)


def architecture_rows() -> Iterator[list[str]]:
    """Compile and measure each architecture: a row of the table."""
    import timm  # noqa: PLC0415 - optional

    for name in track(ARCHITECTURES, "architectures", transient=True):
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False, drop_rate=P).eval().requires_grad_(requires_grad=False)
        head = network.get_classifier()
        if isinstance(head, nn.Linear) and not head.weight.any():
            nn.init.normal_(head.weight, std=0.02)  # logits of 0 would hide a difference
        image_1 = torch.rand(1, 3, PIXELS, PIXELS)
        start = time.perf_counter()
        try:
            compiled = compile_to_files(network, image_1)
        except CompileError as error:
            yield [name, f"refused: {error}", *[""] * 6]
            continue
        except Exception as error:  # noqa: BLE001 - for the table
            yield [name, f"fails: {type(error).__name__}: {error}", *[""] * 6]
            continue
        seconds = time.perf_counter() - start
        graph, spec, image = compiled.graph(), compiled.spec, image_1.numpy()
        calls: dict[str, Callable[[], object]] = {
            EVAL: lambda network=network, image_1=image_1: network(image_1),
            GRAPH_EVAL: lambda graph=graph, image=image: graph.predict(image),
            GRAPH: lambda graph=graph, image=image: graph.sample(image, 100),
        }
        with torch.no_grad():
            medians = interleaved(calls, budget=1.0, label=name)
        yield [
            name,
            "compiled",
            str(len(spec.sites)),
            f"{100 * (1 - spec.shared):.2g} %",
            f"{seconds:.0f}",
            f"{compiled.difference:.0e}",
            f"{medians[GRAPH_EVAL] / medians[EVAL]:.2f}",
            f"{medians[GRAPH] / medians[EVAL]:.2f}",
        ]


def measure_architectures() -> None:
    """Compile, print and write the table of architectures."""
    rows = list(architecture_rows())
    text = f"# Architectures\n\nMade by `python -m benchmarks.networks --architectures`. {machine('timm')}\n\n"
    text += (
        f"Architectures of timm with `drop_rate={P}` and random weights, compiled for images of {PIXELS} pixels; one\n"
        "thread. Difference: the largest of a logit from torch under the same 32 masks and in eval mode, relative to\n"
        "the largest logit. The last two columns are times for one image, in eval-mode forwards of torch.\n\n"
    )
    header = [
        "",
        "result",
        "uses of dropout",
        "after the first mask",
        "seconds to compile",
        "difference",
        "graph, eval mode",
        "graph, 100 masks",
    ]
    text += table(header, rows)
    write("architectures.md", text)
    console.print(text, markup=False)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--architectures", action="store_true", help="compile architectures of timm instead")
    mpl.use("Agg")
    use_threads(1)
    torch.manual_seed(0)
    if parser.parse_args().architectures:
        measure_architectures()
    else:
        measure_networks()


if __name__ == "__main__":
    main()
