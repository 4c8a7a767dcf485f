"""What is measured, against second implementations and the service's own decisions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from model import MLPConfig, MomentPropagation, build_mlp, find_calibration, keep_masks, load_artifact
from service.inference.decision import DecisionOptions, DecisionPolicy
from service.inference.predictor import Predictions
from training.data import FashionMNIST, Images
from training.estimates import Estimates, Estimators, estimate
from training.measure import (
    decide,
    measure,
    measure_class_coverage,
    measure_classes,
    measure_decisions,
    measure_detection,
    ood_scores,
)
from training.metrics import classification_metrics

CONSOLE = Console(quiet=True)
CONFIG = MLPConfig(hidden=(8, 6), dropout=(0.1, 0.4))


def measured(network: nn.Sequential, images: Images, *, samples: int, seed: int) -> dict:
    estimates = estimate(Estimators.of_chain(network), images, samples=(samples,), seed=seed, console=CONSOLE)
    return measure(estimates, images.labels_B.numpy(), samples=samples, seed=seed)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def entropy(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(probs)).sum(axis=-1)


def test_figures_equal_those_of_a_second_implementation() -> None:
    torch.manual_seed(5)
    images = Images(torch.randint(0, 256, (12, 4, 3), dtype=torch.uint8), torch.randint(0, 5, (12,)))
    hidden, logits = nn.Linear(12, 6), nn.Linear(6, 5)
    nn.init.normal_(hidden.weight)
    nn.init.normal_(logits.weight)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), hidden, nn.ReLU(), nn.Dropout(0.3), logits)

    found = measured(network, images, samples=7, seed=5)

    inputs_BP = images.images_B.double().numpy().reshape(12, 12) / 255
    (W1, b1), (W2, b2) = (
        (layer.weight.detach().double().numpy(), layer.bias.detach().numpy()) for layer in (hidden, logits)
    )
    keep1_SP = keep_masks((12,), 0.2, samples=7, seed=5, layer=0)
    keep2_SH = keep_masks((6,), 0.3, samples=7, seed=5, layer=1)
    eval_BC = softmax(np.maximum(inputs_BP @ W1.T + b1, 0) @ W2.T + b2)
    probs_SBC = np.array(
        [
            softmax((np.maximum((inputs_BP * keep1_P / 0.8) @ W1.T + b1, 0) * keep2_H / 0.7) @ W2.T + b2)
            for keep1_P, keep2_H in zip(keep1_SP, keep2_SH, strict=True)
        ]
    )
    mean_BC = probs_SBC.mean(axis=0)
    moments = MomentPropagation(network).predict(images.inputs_B)
    labels_B = images.labels_B.numpy()
    expected = {
        mode: {
            "accuracy": np.mean(probs_BC.argmax(axis=1) == labels_B),
            "nll": -np.mean(np.log(probs_BC[np.arange(12), labels_B])),
            "brier": sum(
                (p - (c == label)) ** 2
                for row, label in zip(probs_BC, labels_B, strict=True)
                for c, p in enumerate(row)
            )
            / 12,
            **{
                name: value
                for name, value in classification_metrics(probs_BC, labels_B).items()
                if name not in {"accuracy", "nll", "brier"}  # the others have tests of their own
            },
            "entropy": np.mean(entropy(probs_BC)),
        }
        for mode, probs_BC in (("eval", eval_BC), ("mc", mean_BC), ("moments", moments.mean.numpy()))
    }
    expected["moments"]["mutual_information"] = moments.mutual_information.mean().item()
    bias_B = (probs_SBC.var(axis=0, ddof=1) / 7 / mean_BC).sum(axis=-1) / 2
    expected["mc"] |= {
        "mutual_information": np.mean(entropy(mean_BC) - entropy(probs_SBC).mean(axis=0) + bias_B),
        "samples": 7,
        "seed": 5,
    }
    assert found.keys() == expected.keys()
    for mode, row in expected.items():
        assert found[mode] == pytest.approx(row, rel=1e-5)
    assert 0 < expected["eval"]["accuracy"] < 1
    assert expected["eval"] != expected["mc"]


def test_seed_determines_the_metrics() -> None:
    torch.manual_seed(1)
    images = Images(torch.randint(0, 256, (9, 28, 28), dtype=torch.uint8), torch.arange(9))
    network = build_mlp(CONFIG)
    first, again, other = (measured(network, images, samples=4, seed=seed) for seed in (8, 8, 9))
    assert first == again
    assert first["eval"] == other["eval"]
    assert first["mc"]["nll"] != other["mc"]["nll"]


def test_evaluation_leaves_mode_and_global_generator_alone() -> None:
    images = Images(torch.zeros(3, 28, 28, dtype=torch.uint8), torch.arange(3))
    network = build_mlp(CONFIG).train()
    before = torch.random.get_rng_state()
    measured(network, images, samples=4, seed=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in network.modules())


@pytest.fixture(scope="module")
def test_part(fashion: FashionMNIST) -> tuple[Images, Estimates]:
    images = fashion.test[:400]
    network = load_artifact().network
    return images, estimate(Estimators.of_chain(network), images, samples=(100,), seed=0, console=CONSOLE)


def test_decisions_are_those_of_the_service(test_part):
    artifact, (images, estimates) = load_artifact(), test_part
    strange = Images(images.images_B.clone(), images.labels_B)
    strange.images_B[::7] = 255 - strange.images_B[::7]
    estimates = estimate(Estimators.of_artifact(artifact), strange, samples=(100,), seed=0, console=CONSOLE)
    scored = ood_scores(artifact, strange, estimates, samples=100)
    found = decide(artifact, estimates, scored, samples=100)
    probs_BC = estimates["masks", 100]["probs_BC"]
    predictions = Predictions("masks", artifact.classes, probs_BC, np.zeros(len(probs_BC)), samples=100)
    decision_options = DecisionOptions(coverage=0.9, set_method="lac", max_risk=0.05, false_alarm_rate=0.01)
    served = DecisionPolicy(artifact).decide(predictions, strange.images_B.numpy(), decision_options, seed=0).each()
    assert found["novel"].tolist() == [decision.novelty.flagged for decision in served]
    assert found["answered"].tolist() == [decision.reason is None for decision in served]
    assert found["novel"][::7].all()
    part = measure_decisions(found, estimates, strange.labels_B.numpy(), samples=100)
    answered = [b for b in range(len(strange)) if found["answered"][b]]
    wrong = [estimates["masks", 100]["probs_BC"][b].argmax() != strange.labels_B[b] for b in answered]
    assert part == pytest.approx(
        {"novel": found["novel"].mean(), "answered": len(answered) / 400, "error": np.mean(wrong)}
    )
    assert "error" not in measure_decisions(found, estimates, None, samples=100)


def test_decide_returns_none_without_calibration(test_part):
    images, estimates = test_part
    artifact = load_artifact()
    bare = replace(artifact, calibrations=(), novelty=None)
    scored = ood_scores(bare, images, estimates, samples=100)
    assert "novelty" not in scored
    assert decide(bare, estimates, scored, samples=100) is None


def test_classes_together_give_the_whole(test_part):
    artifact, (images, estimates) = load_artifact(), test_part
    labels_B = images.labels_B.numpy()
    by_class = measure_classes(
        estimates, labels_B, samples=100, classes=artifact.classes, calibrations=artifact.calibrations
    )
    assert tuple(by_class) == artifact.classes
    whole = measure(estimates, labels_B, samples=100, seed=0, calibrations=artifact.calibrations)["mc"]
    shares = np.bincount(labels_B, minlength=10) / len(labels_B)
    assert shares @ [row["error"] for row in by_class.values()] == pytest.approx(1 - whole["accuracy"])
    for method, by_coverage in whole["calibrated"]["prediction_sets"].items():
        for coverage, found in by_coverage.items():
            for name, value in found.items():
                parts = [row["prediction_sets"][method][coverage][name] for row in by_class.values()]
                assert shares @ parts == pytest.approx(value), (method, coverage, name)


def test_the_card_has_two_methods_by_class_and_no_absent_class(test_part):
    artifact, (images, estimates) = load_artifact(), test_part
    labels_B = images.labels_B.numpy()
    kept_B = labels_B != 3
    few = {key: {name: values[kept_B] for name, values in found.items()} for key, found in estimates.items()}
    options = {"samples": 100, "classes": artifact.classes}
    found = measure_class_coverage(few, labels_B[kept_B], **options, calibrations=artifact.calibrations)
    assert tuple(found) == (*artifact.classes[:3], *artifact.classes[4:])
    whole = measure_classes(estimates, labels_B, **options, calibrations=artifact.calibrations)
    for name, row in found.items():
        sets = whole[name]["prediction_sets"]
        assert row == {"prediction_sets": {method: {"0.9": sets[method]["0.9"]} for method in ("lac", "mondrian")}}
    assert measure_class_coverage(estimates, labels_B, **options, calibrations=()) == {}


def test_calibrated_sets_and_answers_are_counted_one_by_one(test_part):
    artifact, (images, estimates) = load_artifact(), test_part
    labels_B = images.labels_B.numpy()
    found = measure(estimates, labels_B, samples=100, seed=0, calibrations=artifact.calibrations)["eval"]["calibrated"]
    calibration = find_calibration(artifact.calibrations, "eval", 0)
    probs_BC = calibration.probabilities(estimates["eval", 0]["probs_BC"])
    for coverage, row in found["prediction_sets"]["lac"].items():
        least = 1 - calibration.set_scores["lac"][float(coverage)]
        sets = [{c for c, p in enumerate(probs_C) if p >= least} for probs_C in probs_BC]
        assert row["size"] == pytest.approx(np.mean([len(members) for members in sets]))
        assert row["covered"] == pytest.approx(np.mean([y in s for y, s in zip(labels_B, sets, strict=True)]))
    for risk, row in found["max_risk"].items():
        least = calibration.confidences[float(risk)]
        answered = [b for b, probs_C in enumerate(probs_BC) if max(probs_C) >= least]
        assert row["answered"] == pytest.approx(len(answered) / len(labels_B))
        assert row["error"] == pytest.approx(np.mean([probs_BC[b].argmax() != labels_B[b] for b in answered]))


def test_every_score_of_the_outside_is_set_against_the_inside():
    inside = {"one": np.array([0.1, 0.2, 0.3]), "other": np.array([0.5, 0.6, 0.7])}
    outside = {"one": np.array([0.4, 0.5]), "other": np.array([0.1, 0.65])}
    found = measure_detection(inside, outside)
    assert found["one"]["auroc"] == 1
    assert found["other"]["auroc"] == pytest.approx(2 / 6)
