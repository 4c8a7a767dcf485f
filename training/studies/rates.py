"""Dropout probabilities of the two hidden layers."""

from training import plots
from training.studies.claims import Claim, claim
from training.studies.measurements import QUALITY
from training.studies.stack import Variant
from training.studies.study import Check, Findings, Results, Study, train_and_measure

_RATES = (0.0, 0.2, 0.5)
_NONE, _CHAPTER, _SWAPPED, _MOST, _TOO_MUCH = "0/0", "0.2/0.5", "0.5/0.2", "0.5/0.5", "0.8/0.8"


def _variant(first: float, second: float) -> Variant:
    return Variant(name=f"{first:g}/{second:g}", rates=(first, second))


def _interpret(results: Results) -> Findings:
    def compare(other: str, metric: str, what: str, name: str = _CHAPTER) -> Claim:
        return claim(results.difference(name, other, metric), what, f"with {name}", f"with {other}")

    swapped = results.difference(_CHAPTER, _SWAPPED, "accuracy")
    return Findings(
        claims=[
            compare(_NONE, "gap", "the gap between training and test accuracy"),
            compare(_NONE, "accuracy", "test accuracy"),
            compare(_NONE, "nll", "NLL"),
            compare(_NONE, "accuracy", "test accuracy", _TOO_MUCH),
            compare(_SWAPPED, "accuracy", "test accuracy"),
            compare(_SWAPPED, "gap", "the gap"),
            compare(_SWAPPED, "mc nll", "MC NLL"),
            compare(_SWAPPED, "mc ece", "MC ECE"),
            compare(_SWAPPED, "auroc information", "AUROC of the mutual information"),
            *results.best_variants("accuracy", "test accuracy", lowest=False),
            *results.best_variants("mc nll", "MC NLL", lowest=True),
            *results.best_variants("mc ece", "MC ECE", lowest=True),
            *results.best_variants("auroc entropy", "AUROC of the entropy", lowest=False),
        ],
        tables=[results.table(QUALITY, first="p of layer 1 / 2")],
        pictures={
            "rates": (
                "Means over seeds by dropout probability of the first layer (rows) and the second (columns)",
                plots.heatmaps(
                    {
                        title: {
                            f"{first:g}": [results.estimate(f"{first:g}/{second:g}", metric).mean for second in _RATES]
                            for first in _RATES
                        }
                        for title, metric in {
                            "train - test accuracy": "gap",
                            "MC NLL": "mc nll",
                            "AUROC, entropy": "auroc entropy",
                        }.items()
                    },
                    columns=[f"{rate:g}" for rate in _RATES],
                    x="p of the second layer",
                    digits=3,
                ),
            )
        },
        checks=[
            Check(
                f"{_MOST} narrows the gap between training and test accuracy",
                -results.difference(_MOST, _NONE, "gap").mean,
                0.001,
            ),
            Check("the swap moves test accuracy by less than 0.02", 0.02 - abs(swapped.mean), 0),
        ],
    )


STUDY = Study(
    name="rates",
    question="What is the effect of the dropout probabilities of the two hidden layers, and of swapping them?",
    design="A grid of probabilities of both layers, and 0.8 for both. {epochs} epochs with a learning rate that "
    "falls to 0, so that the last batches have little weight. MC is the mean over {passes} masks. AUROC "
    "measures how well the entropy of that mean, or the mutual information, detects MNIST's digits; without "
    "dropout the mutual information is 0 except for rounding.",
    limits="Number of epochs and learning rate were the same for all and not tuned: more "
    "dropout may need more epochs. The best of ten is best partly by luck.",
    variants=(*(_variant(first, second) for first in _RATES for second in _RATES), _variant(0.8, 0.8)),
    epochs=(10, 24),
    schedule="linear",
    run=train_and_measure,
    interpret=_interpret,
)
