"""Comparison of dropout with other noise of the same variance."""

from training import plots
from training.studies.claims import Claim, claim, markdown
from training.studies.intervals import holm, paired_p
from training.studies.measurements import QUALITY
from training.studies.perturbations import Kind
from training.studies.stack import Variant
from training.studies.study import Check, Findings, Results, Study, train_and_measure

_NONE, _DROPOUT = "none", "dropout"
_OTHERS: tuple[Kind, ...] = ("gaussian", "uniform", "additive", "balanced")
_TESTED = {"accuracy": ("accuracy", 1), "NLL": ("nll", -1), "MC NLL": ("mc nll", -1)}  # and which way is better
_LEVEL = 0.05


def _interpret(results: Results) -> Findings:
    comparisons = [(name, title) for name in _OTHERS for title in _TESTED]
    p_values = [
        paired_p(results.values(name, _TESTED[title][0]), results.values(_DROPOUT, _TESTED[title][0]))
        for name, title in comparisons
    ]
    adjusted = dict(zip(comparisons, holm(p_values), strict=True))
    rows, better, worse, unsettled = [], [], [], []
    for (name, title), p in zip(comparisons, p_values, strict=True):
        metric, sign = _TESTED[title]
        difference = results.difference(name, _DROPOUT, metric)
        rows.append([f"{name}, {title}", f"{difference}", _format_p(p), _format_p(adjusted[name, title])])
        if adjusted[name, title] < _LEVEL:
            (better if sign * difference.mean > 0 else worse).append(f"{name} in {title} ({difference})")
        else:
            unsettled.append(Claim(f"whether {title} is higher with {name} or dropout ({difference})", is_open=True))
    return Findings(
        claims=[
            Claim(
                f"Better than dropout, corrected for {len(comparisons)} comparisons: {', '.join(better)}."
                if better
                else f"Nothing is shown to beat dropout, corrected for {len(comparisons)} comparisons."
            ),
            Claim(
                f"Worse than dropout, likewise: {', '.join(worse)}."
                if worse
                else "Nothing is shown to be worse, either."
            ),
            *(
                claim(
                    results.difference(name, _NONE, "gap"),
                    "the gap between training and test accuracy",
                    f"with {name}",
                    "without noise",
                )
                for name in (_DROPOUT, *_OTHERS)
            ),
            *unsettled,
        ],
        tables=[
            results.table(QUALITY),
            markdown(["against dropout", "difference", "p, paired t test", "p, Holm"], rows),
        ],
        pictures={
            "noise": (
                "Mean over seeds and its interval",
                plots.intervals(
                    results.intervals({"accuracy": "accuracy", "train - test": "gap", "NLL": "nll", "MC NLL": "mc nll"})
                ),
            )
        },
        checks=[
            Check(f"{name} narrows the gap, or widens it little", -results.difference(name, _NONE, "gap").mean, -0.005)
            for name in (_DROPOUT, "gaussian", "balanced")
        ],
    )


def _format_p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


STUDY = Study(
    name="noise",
    question="Does any other noise of the same variance, in the same places, beat dropout?",
    design="The same architecture, with noise behind each hidden layer of the variance of dropout 0.2/0.5: a = p/(1 "
    "- p) times the unit's square (a times the layer's mean square for the additive noise), and no change of "
    "the mean. Gaussian and uniform factors, additive Gaussian noise, and balanced dropout, our own proposal: each "
    "unit is dropped in the same number of images of a batch, in others for each unit, meant to make "
    "gradients vary less. {epochs} epochs with a learning rate that falls to 0; {passes} passes at test time, "
    "the noise of each being that of all images. Networks of one seed share initial weights and batches; "
    "tests are paired over seeds, and their p-values, not their intervals, corrected by Holm's method.",
    limits="So few seeds show large differences only; what is open may still exist. Rates were chosen for dropout, "
    "not for the others, at one length of training. In single passes at test time, balanced dropout is "
    "ordinary dropout.",
    variants=(
        Variant(name=_NONE),
        Variant(name=_DROPOUT, rates=(0.2, 0.5)),
        *(Variant(name=kind, rates=(0.2, 0.5), noise=kind) for kind in _OTHERS),
    ),
    epochs=(10, 24),
    schedule="linear",
    run=train_and_measure,
    interpret=_interpret,
)
