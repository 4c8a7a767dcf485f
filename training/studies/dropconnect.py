"""DropConnect: masks on weights instead of units."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model import DropConnect
from training import plots
from training.studies.claims import Claim, claim, markdown
from training.studies.measurements import QUALITY, Measurement, StudyData
from training.studies.stack import Variant
from training.studies.study import Check, Findings, Results, Study, Task, train_and_measure

_NONE, _DROPOUT, _SAME, _MORE = "none", "dropout 0.2/0.5", "DropConnect 0.2/0.5", "DropConnect 0.5/0.5"
_BATCH = 256
_REPEATS = 20
_TIMED_PASSES = 100


def _run(task: Task) -> Iterator[Measurement]:
    yield from train_and_measure(task)
    for variant in task.variants:
        yield from _costs(variant, task.data)


def _costs(variant: Variant, data: StudyData) -> Iterator[Measurement]:
    """Time a step, and a hundred passes of one image, of the network in plain PyTorch."""
    network = build(variant)
    inputs_BU, labels_B = data.train_inputs[:_BATCH], data.train.labels_B[:_BATCH]
    yield Measurement(
        variant.name,
        "microseconds",
        _BATCH,
        _measure_time(lambda: cross_entropy(network(inputs_BU), labels_B).backward()),
    )
    with torch.no_grad():
        taken = _measure_time(lambda: [network(inputs_BU[:1]) for _ in range(_TIMED_PASSES)])
    yield Measurement(variant.name, "microseconds", 1, taken / _TIMED_PASSES)


def build(variant: Variant) -> nn.Sequential:
    """Build a variant's network of PyTorch's layers, or of `DropConnect`, in train mode."""
    first, second = variant.rates
    if variant.noise == "dropconnect":
        return nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), DropConnect(256, 256, first), nn.ReLU(), DropConnect(256, 10, second)
        )
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Dropout(first), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(second),
        nn.Linear(256, 10),
    )  # fmt: skip


def _measure_time(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(_REPEATS):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken) * 1e6


def _interpret(results: Results) -> Findings:
    def compare(other: str, name: str, metric: str, what: str) -> Claim:
        return claim(results.difference(name, other, metric), what, f"with {name}", f"with {other}")

    costs = {name: [results.estimate(name, "microseconds", images) for images in (_BATCH, 1)] for name in results.names}
    timed = f"step of {_BATCH} images", "pass of one image"
    return Findings(
        claims=[
            compare(_NONE, _SAME, "gap", "the gap between training and test accuracy"),
            *(
                compare(_DROPOUT, name, metric, what)
                for name in (_SAME, _MORE)
                for metric, what in (
                    ("accuracy", "test accuracy"),
                    ("gap", "the gap"),
                    ("mc nll", "MC NLL"),
                    ("mc ece", "MC ECE"),
                    ("auroc information", "AUROC of the mutual information"),
                )
            ),
            *(
                Claim(
                    f"A {what} takes {costs[_SAME][place]:0} µs with {_SAME}, {costs[_DROPOUT][place]:0} µs with "
                    f"{_DROPOUT}."
                )
                for place, what in enumerate(timed)
            ),
        ],
        tables=[
            results.table(QUALITY),
            markdown(
                ["network", *(f"µs a {what}" for what in timed)],
                [[name, *(f"{cost:0}" for cost in pair)] for name, pair in costs.items()],
            ),
        ],
        pictures={
            "dropconnect": (
                "Mean over seeds and its interval",
                plots.intervals(
                    results.intervals(
                        {
                            "accuracy": "accuracy",
                            "train - test": "gap",
                            "MC NLL": "mc nll",
                            "AUROC, information": "auroc information",
                        }
                    )
                ),
            )
        },
        checks=[
            Check(
                "DropConnect is as accurate as dropout, to 0.03",
                0.03 - abs(results.difference(_SAME, _DROPOUT, "accuracy").mean),
                0,
            ),
            Check(
                "its mutual information detects digits",
                results.estimate(_SAME, "auroc information").mean - 0.5,
                0.1,
            ),
        ],
    )


STUDY = Study(
    name="dropconnect",
    question="What if masks are put on weights instead of activations?",
    design="`model.DropConnect` with p on the weights that lead out of a hidden layer, where dropout with p drops "
    "its units. One mask for each batch in training, one for each pass over all images at test time ({passes} "
    "passes). {epochs} epochs with a learning rate that falls from 0.2 to 0, as from 0.5 a network with "
    "DropConnect diverged (seed 1). Time is the processor's for networks of PyTorch's layers, on one thread, "
    "the least of twenty.",
    limits="The paper (Wan et al. 2013) draws a mask for each image, which costs as many masks of weights as a batch "
    "has images: one for the whole batch makes noisier steps. The first layer's weights aren't masked, as its "
    "inputs aren't dropped.",
    variants=(
        Variant(name=_NONE),
        Variant(name=_DROPOUT, rates=(0.2, 0.5)),
        Variant(name=_SAME, rates=(0.2, 0.5), noise="dropconnect"),
        Variant(name=_MORE, rates=(0.5, 0.5), noise="dropconnect"),
    ),
    epochs=(10, 24),
    schedule="linear",
    learning_rate=0.2,
    run=_run,
    interpret=_interpret,
)
