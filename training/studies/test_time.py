"""Benefit and cost of dropout at test time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from model import Masks, MomentPropagation, MonteCarloDropout
from training import plots
from training.metrics import classification_metrics
from training.studies.claims import Claim, claim, markdown
from training.studies.intervals import estimate
from training.studies.measurements import Measurement
from training.studies.stack import Variant
from training.studies.study import Check, Findings, Results, Study, Task, train

Array = np.ndarray

_OFF, _MOMENTS = "off", "moments"
_DESIGNS: tuple[Masks, ...] = ("independent", "stratified")
_METRICS = {"accuracy": "accuracy", "NLL": "nll", "ECE": "ece"}
_IMAGES_AT_ONCE = 250
_TIMED_IMAGES = 20  # images
_REPEATS = 10


def _variant(name: str) -> Variant:
    return Variant(name=name, rates=(0.2, 0.5))


def _run(task: Task) -> Iterator[Measurement]:
    """Train one network, and predict with it by each method."""
    network = train(replace(task, variants=task.variants[:1])).network(0)
    mc, moments = MonteCarloDropout(network), MomentPropagation(network)
    parts_BU = task.data.test_inputs.split(_IMAGES_AT_ONCE)
    labels_B = task.data.test.labels_B.numpy()

    def measured(name: str, at: int, probs_BC: Tensor) -> Iterator[Measurement]:
        scored = classification_metrics(probs_BC.double().numpy(), labels_B)
        yield from (Measurement(name, metric, at, scored[metric]) for metric in _METRICS.values())

    timed_BU = parts_BU[0][:_TIMED_IMAGES].reshape(-1, 1, 28, 28)
    yield from measured(_OFF, 0, torch.cat([mc.predict(_as_images(part_BU)) for part_BU in parts_BU]))
    yield Measurement(_OFF, "microseconds", 0, _measure_time(lambda: mc.predict(timed_BU)))
    yield from measured(_MOMENTS, 0, torch.cat([moments.predict(_as_images(part_BU)).mean for part_BU in parts_BU]))
    yield Measurement(_MOMENTS, "microseconds", 0, _measure_time(lambda: moments.predict(timed_BU)))
    counts = task.data.scale.masks
    for masks in _DESIGNS:
        sums: dict[int, list[Tensor]] = {count: [] for count in counts}
        for part_BU in parts_BU:
            probs_SBC = mc.sample(_as_images(part_BU), samples=max(counts), seed=task.seed, masks=masks)
            for count in counts:
                sums[count].append(probs_SBC[:count].mean(dim=0, dtype=torch.float64))
        for count in counts:
            yield from measured(masks, count, torch.cat(sums[count]))
            if count > 1:  # MonteCarloDropout refuses one mask, which has no variance
                yield Measurement(masks, "microseconds", count, _measure_masks_time(mc, timed_BU, count, masks))


def _as_images(inputs_BU: Tensor) -> Tensor:
    return inputs_BU.reshape(-1, 1, 28, 28)


def _measure_masks_time(mc: MonteCarloDropout, images_B: Tensor, count: int, masks: Masks) -> float:
    return _measure_time(lambda: mc.sample(images_B, samples=count, masks=masks))


def _measure_time(predict: Callable[[], object]) -> float:
    """Microseconds per image, minimum over repetitions; images are predicted one at a time, as by the service."""
    predict()
    taken = []
    for _ in range(_REPEATS):
        start = time.process_time()
        predict()
        taken.append(time.process_time() - start)
    return min(taken) / _TIMED_IMAGES * 1e6


def _cells(results: Results, name: str, at: int) -> list[str]:
    timed = at in results.positions(name, "microseconds")
    cells = [f"{results.estimate(name, metric, at)}" for metric in _METRICS.values()]
    return [*cells, f"{results.estimate(name, 'microseconds', at):0}" if timed else ""]


def _interpret(results: Results) -> Findings:
    counts = results.positions("independent", "nll")
    most_masks = counts[-1]
    some_masks = max(count for count in counts if count <= 100)

    one, all_of = "one mask", f"the mean of {most_masks} masks"

    def nll(name: str, at: int = 0) -> Array:
        return results.values(name, "nll", at)

    def against_off(metric: str, what: str, count: int) -> Claim:
        found = estimate(results.values("independent", metric, count) - results.values(_OFF, metric))
        return claim(found, what, f"with {one if count == 1 else all_of}", "with dropout off")

    gain = estimate(nll("independent", 1) - nll("independent", some_masks))
    moments_gap = estimate(nll(_MOMENTS) - nll("independent", most_masks))
    stratified_gain = estimate(nll("stratified", 10) - nll("independent", 10))
    rows = [
        [name if not at else f"{name}, {at}", *_cells(results, name, at)]
        for name in results.names
        for at in results.positions(name, "nll")
    ]
    timed = {f"{count} stratified masks": ("stratified", count) for count in sorted({10, some_masks, most_masks})}
    times = [
        f"{results.estimate(name, 'microseconds', at):0} µs with {title}"
        for title, (name, at) in {"dropout off": (_OFF, 0), **timed, "moments": (_MOMENTS, 0)}.items()
    ]
    panels = {}
    for title, metric in (_METRICS | {"µs an image": "microseconds"}).items():
        panels[title] = {masks: results.curve(masks, metric) for masks in _DESIGNS} | {
            name: dict.fromkeys(counts, results.estimate(name, metric).pair) for name in (_OFF, _MOMENTS)
        }
    return Findings(
        claims=[
            against_off("accuracy", "accuracy", 1),
            against_off("nll", "NLL", 1),
            against_off("accuracy", "accuracy", most_masks),
            against_off("nll", "NLL", most_masks),
            against_off("ece", "ECE", most_masks),
            claim(gain, "NLL", "with one mask", f"with the mean of {some_masks}"),
            claim(stratified_gain, "NLL", "with ten stratified masks", "with ten independent ones"),
            claim(moments_gap, "NLL", "by moments", f"with {all_of}"),
            Claim(f"An image takes {', '.join(times)}."),
        ],
        tables=[markdown(["prediction", *_METRICS, "µs an image"], rows)],
        pictures={
            "test-time": (
                "Against the number of masks, mean over seeds and its interval",
                plots.curves_with_intervals(panels, x="masks", log=True),
            ),
        },
        checks=[
            Check(f"one mask is worse in NLL than {some_masks}", gain.mean, 0.01),
            Check(f"moments are as good in NLL as {most_masks} masks, to 0.01", 0.01 - abs(moments_gap.mean), 0),
        ],
    )


STUDY = Study(
    name="test-time",
    question="Why is dropout usually switched off at test time, and what is the benefit of leaving it on?",
    design="The usual reason is that one pass suffices, and that the answer is the same each time (which a fixed "
    "seed does too). One network for each seed with dropout 0.2/0.5, {epochs} epochs with a learning rate "
    "that falls to 0. It predicts with dropout off, as the mean over the first N masks, independent or "
    "stratified, and with moments, always with the code of the service. Time is the processor's for single "
    "images on one thread, the least of ten.",
    limits="In-distribution images only; `rates` has out-of-distribution images. "
    "Times depend on the machine and its load. Nothing is calibrated afterwards, which "
    "would narrow differences in ECE.",
    variants=tuple(_variant(name) for name in (_OFF, *_DESIGNS, _MOMENTS)),
    epochs=(10, 24),
    schedule="linear",
    run=_run,
    interpret=_interpret,
    trained_together=True,
    version=2,
)
