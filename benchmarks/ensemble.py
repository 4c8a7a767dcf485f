"""Cost and sampling error of an ensemble beside one of its networks: `python -m benchmarks.ensemble`.

The embedded network and the four others of `training/ensemble`, joined, and the embedded network alone take turns: the
graphs on one thread, and two servers. The sampling error is that of the mean probability of the most probable class, on
calibration images. Writes docs/performance/ensemble.md.
"""

import http.client
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.common import interleaved, machine, table, use_threads, write
from benchmarks.error import held_out
from benchmarks.latency import png
from benchmarks.servers import SERVICE, run_server
from model import Graph, load_artifact, save_compiled
from model.artifact import PRETRAINED
from model.masks import Masks
from model.network import Compiled, join_networks
from training.data import load_fashion_mnist

ONE, ALL = "one network", "five networks"
SEEDS = Path(__file__).parent.parent / "training" / "ensemble"
SAMPLES = (0, 10, 30, 100)
ERROR_SAMPLES = (10, 30, 50, 100, 200)
BATCHES = (1, 32)
BUDGET = 1.0  # seconds of each graph, batch and number of masks
REQUESTS = 300
ROUNDS = 40  # seeds
REFERENCE_SEED, REFERENCE_ROUNDS = 10**6, 10  # of 1,000 masks each

console = Console(highlight=False)


def join() -> Compiled:
    """The five networks."""
    artifacts = [load_artifact(folder) for folder in (PRETRAINED, *sorted(SEEDS.iterdir()))]
    return join_networks([Compiled(one.engine.spec, dict(one.files), math.nan) for one in artifacts])


def mode(samples: int) -> str:
    """A mode in words."""
    return f"{samples} masks" if samples else "eval"


def measure_graphs(graphs: Mapping[str, Graph], images_B: np.ndarray) -> list[list[str]]:
    """Rows of the costs of an image, by batch size and mode."""
    rows = []
    for batch in BATCHES:
        part_B = images_B[:batch]
        for samples in SAMPLES:
            calls: dict[str, Callable[[], object]] = {
                name: (lambda graph=graph, part_B=part_B, samples=samples: graph.estimate(part_B, samples))
                if samples
                else (lambda graph=graph, part_B=part_B: graph.predict(part_B))
                for name, graph in graphs.items()
            }
            seconds = interleaved(calls, budget=BUDGET, label=f"{batch} images, {mode(samples)}")
            cells = [f"{seconds[name] / batch * 1e6:.0f}" for name in graphs]
            rows.append(
                [
                    f"{batch} image{'s' if batch > 1 else ''}, {mode(samples)}",
                    *cells,
                    f"{seconds[ALL] / seconds[ONE]:.1f}",
                ]
            )
    return rows


def measure_servers(folders: Mapping[str, Path], images: Sequence[bytes]) -> list[list[str]]:
    """Rows of the latencies by mode, of single requests to one worker each, taking turns."""
    seconds: dict[tuple[int, str], list[float]] = {(samples, name): [] for samples in SAMPLES for name in folders}
    with ExitStack() as stack:
        connections = {
            name: http.client.HTTPConnection(
                "127.0.0.1", stack.enter_context(run_server(SERVICE, MCD_MODEL=str(folder))).port
            )
            for name, folder in folders.items()
        }
        for index in track(range(REQUESTS), "requests", transient=True):
            for (samples, name), times in seconds.items():
                begun = time.perf_counter()
                connections[name].request("POST", f"/predict?samples={samples}", images[index % len(images)])
                response = connections[name].getresponse()
                answer = response.read()
                times.append(time.perf_counter() - begun)
                if response.status != http.client.OK:
                    raise RuntimeError(answer.decode())
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    return [
        [
            f"request, {mode(samples)}",
            *(f"{medians[samples, name] * 1e6:.0f}" for name in folders),
            f"{medians[samples, ALL] / medians[samples, ONE]:.2f}",
        ]
        for samples in SAMPLES
    ]


def measure_errors(graphs: Mapping[str, Graph], images_B: np.ndarray) -> list[list[str]]:
    """Rows of the errors and of the standard errors relative to them, by number of masks."""
    reference = {
        name: np.mean(
            [graph.sample(images_B, 1000, REFERENCE_SEED + index).mean(0, float) for index in range(REFERENCE_ROUNDS)],
            axis=0,
        )
        for name, graph in graphs.items()
    }
    rows = []
    for samples in track(ERROR_SAMPLES, "errors", transient=True):
        cells = []
        for name, graph in graphs.items():
            error, given = _errors(graph, images_B, reference[name], samples, "stratified")
            independent, _ = _errors(graph, images_B, reference[name], samples, "independent")
            within = (np.abs(error) <= 1.96 * given).mean()
            cells += [
                f"{_rms(error):.4f}",
                f"{_rms(independent):.4f}",
                f"{_rms(given) / _rms(error):.2f}, {within:.2f}",
            ]
        rows.append([str(samples), *cells])
    return rows


def _errors(
    graph: Graph, images_B: np.ndarray, reference_BC: np.ndarray, samples: int, masks: Masks
) -> tuple[np.ndarray, np.ndarray]:
    """Error of the mean of the most probable class, and its standard error, by seed and image."""
    top = np.arange(len(images_B)), reference_BC.argmax(axis=1)
    found = [graph.estimate(images_B, samples, seed, masks=masks) for seed in range(ROUNDS)]
    return np.array([one.mean[top] - reference_BC[top] for one in found]), np.array(
        [one.standard_error[top] for one in found]
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def main() -> None:
    """Measure, print and write."""
    use_threads(1)
    fashion = load_fashion_mnist()
    joined = join()
    graphs = {ONE: load_artifact().engine, ALL: joined.graph()}
    test = fashion.test[:200]
    with tempfile.TemporaryDirectory() as folder:
        one = load_artifact()
        card = {"classes": list(one.classes)}
        save_compiled(Path(folder), joined, card, calibrations=one.calibrations, novelty=one.novelty, first=one)
        costs = measure_graphs(graphs, test.inputs_B.numpy())
        costs += measure_servers({ONE: PRETRAINED, ALL: Path(folder)}, [png(one) for one in test.images_B.numpy()])
    errors = measure_errors(graphs, held_out(fashion).numpy())
    text = (
        f"# Ensemble\n\nMade by `make bench`. {machine()}\n\nThe embedded network, and it and the four others of "
        "`training/ensemble` as [one graph](../method.md#ensembles), among which the masks are divided.\n\n"
        "## Cost\n\nMicroseconds an image, with the summary of the passes; one thread, medians of interleaved calls. "
        f"Requests are {REQUESTS} single PNG images for each mode, each to one worker; both with the same "
        "calibration and novelty score.\n\n"
    )
    text += table(["", *graphs, "ratio"], costs)
    text += (
        "\n## Sampling error\n\nRoot mean square of the error of the most probable class's mean probability, over "
        f"{len(held_out(fashion))} calibration images and {ROUNDS} seeds, relative to the same network or ensemble "
        f"under {REFERENCE_ROUNDS},000 masks; and the standard error relative to it, with the share of intervals of "
        "±1.96 standard errors that contain the reference.\n\n"
    )
    columns = [f"{name}: {column}" for name in graphs for column in ("stratified", "independent", "standard error")]
    text += table(["masks", *columns], errors)
    write("ensemble.md", text)
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
