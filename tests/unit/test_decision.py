from dataclasses import replace

import numpy as np
import pytest

from model import Artifact
from service.inference.decision import Decision, DecisionOptions, DecisionPolicy
from service.inference.predictor import Predictions

PREDICTED = 6  # index of the class


@pytest.fixture(scope="module")
def artifact(served) -> Artifact:
    return served.artifact


def bright(artifact: Artifact) -> np.ndarray:
    """An image with a bright rectangle."""
    pixels = np.zeros(artifact.input.pixel_shape, np.uint8)
    pixels[5:15, 8:20] = 200
    return pixels


def predicted(artifact: Artifact, confidence: float, *, samples: int = 100) -> Predictions:
    probabilities = [(1 - confidence) / (len(artifact.classes) - 1)] * len(artifact.classes)
    probabilities[PREDICTED] = confidence
    return Predictions(
        estimator="masks" if samples else "eval",
        classes=artifact.classes,
        probs_BC=np.array([probabilities]),
        entropy_B=np.array([0.5]),
        samples=samples,
    )


def decide(
    artifact: Artifact, predictions: Predictions, pixels: np.ndarray | None = None, *, seed: int = 0, **asked
) -> Decision:
    pixels_B = (bright(artifact) if pixels is None else pixels)[None]
    (decision,) = DecisionPolicy(artifact).decide(predictions, pixels_B, decision_options(**asked), seed=seed).each()
    return decision


def decision_options(**changed: object) -> DecisionOptions:
    return DecisionOptions(
        **({"coverage": 0.9, "set_method": "lac", "max_risk": 0.05, "false_alarm_rate": 0.01} | changed)
    )


def with_thresholds(artifact: Artifact, threshold: float | None) -> Artifact:
    """One that takes everything above a score for novel."""
    novelty = replace(artifact.novelty, thresholds=dict.fromkeys(artifact.novelty.thresholds, threshold))
    return replace(artifact, novelty=novelty)


@pytest.mark.parametrize(
    ("threshold", "confidence", "reason"),
    [(-100, 0.99, "novelty"), (-100, 0.2, "novelty"), (1e9, 0.99, None), (1e9, 0.2, "risk"), (None, 0.99, None)],
)
def test_novelty_goes_before_risk(artifact, threshold, confidence, reason):
    found = decide(with_thresholds(artifact, threshold), predicted(artifact, confidence))
    assert found.reason == reason
    assert found.novelty.flagged == (reason == "novelty")
    assert found.confidence_threshold == found.calibration.confidences[0.05]


def test_a_model_without_calibration_says_so_and_decides_nothing(artifact):
    plain = replace(artifact, calibrations=(), novelty=None)
    found = decide(plain, predicted(artifact, 0.1))
    assert found.warnings == ("the model has no calibration: probabilities are raw, and there is no prediction set",)
    assert (found.calibration, found.probabilities, found.prediction_set, found.reason, found.novelty) == (None,) * 5


def test_uncalibrated_coverage_gives_no_set(artifact):
    one = next(one for one in artifact.calibrations if one.estimator == "eval")
    poor = replace(one, set_scores={"lac": dict.fromkeys(one.set_scores["lac"]), "aps": one.set_scores["aps"]})
    found = decide(replace(artifact, calibrations=(poor,)), predicted(artifact, 0.9, samples=0))
    assert found.prediction_set is None
    assert found.warnings == ("a coverage of 0.9 is not calibrated for set_method=lac",)
    assert sum(found.probabilities) == pytest.approx(1)


def test_a_method_that_an_older_card_lacks_gives_no_set(artifact):
    one = next(one for one in artifact.calibrations if one.estimator == "eval")
    old = replace(one, set_scores={name: one.set_scores[name] for name in ("lac", "aps")})
    for method in ("raps", "mondrian"):
        found = decide(replace(artifact, calibrations=(old,)), predicted(artifact, 0.9, samples=0), set_method=method)
        assert found.prediction_set is None
        assert found.warnings == (f"a coverage of 0.9 is not calibrated for set_method={method}",)


def test_classes_with_too_few_images_are_in_each_set_and_named(artifact):
    one = next(one for one in artifact.calibrations if one.estimator == "eval")
    thresholds = (*[None] * PREDICTED, *[0.5] * (len(artifact.classes) - PREDICTED))
    few = replace(one, set_scores=one.set_scores | {"mondrian": {0.9: thresholds}})
    found = decide(replace(artifact, calibrations=(few,)), predicted(artifact, 0.99, samples=0), set_method="mondrian")
    assert found.prediction_set[0] == artifact.classes[PREDICTED]
    assert set(found.prediction_set) == {artifact.classes[PREDICTED], *artifact.classes[:PREDICTED]}
    named = ", ".join(artifact.classes[:5])
    assert found.warnings == (
        f"each set contains {named} and 1 more: too few calibration images of these classes for this coverage",
    )
    assert decide(replace(artifact, calibrations=(few,)), predicted(artifact, 0.99, samples=0)).warnings == ()


def test_a_risk_without_guarantee_leaves_each_image_to_a_person_and_says_so(artifact):
    one = next(one for one in artifact.calibrations if one.estimator == "eval")
    poor = replace(one, confidences=one.confidences | {0.01: None})
    few = replace(with_thresholds(artifact, 1e9), calibrations=(poor,))
    found = decide(few, predicted(artifact, 1.0, samples=0), max_risk=0.01)
    assert (found.reason, found.confidence_threshold) == ("risk", None)
    assert found.warnings == ("a max_risk of 0.01 can't be guaranteed: each image is left to a person",)
    other = decide(few, predicted(artifact, 1.0, samples=0), max_risk=0.05)
    assert (other.reason, other.warnings) == (None, ())


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_a_false_alarm_rate_without_threshold_flags_no_image_and_says_so(artifact, is_calibrated):
    few = with_thresholds(artifact if is_calibrated else replace(artifact, calibrations=()), None)
    found = decide(few, predicted(artifact, 1.0), false_alarm_rate=0.001)
    assert not found.novelty.flagged
    assert found.warnings[-1] == "a false_alarm_rate of 0.001 is not calibrated: no image is flagged as novel"
    assert len(found.warnings) == (1 if is_calibrated else 2)


@pytest.mark.parametrize(("method", "confidence"), [("aps", 0.4), ("raps", 0.5)])
def test_adaptive_sets_depend_on_pixels_and_seed_alone(artifact, method, confidence):
    """Of a doubtful image, whose set by the method has a class more or less as the random number falls."""
    prediction = predicted(artifact, confidence)

    def size(seed: int, pixels: np.ndarray | None = None) -> int:
        return len(decide(artifact, prediction, pixels, seed=seed, set_method=method).prediction_set)

    sizes = [size(seed) for seed in range(40)]
    assert sizes == [size(seed) for seed in range(40)]
    assert len(set(sizes)) > 1
    others = [bright(artifact) + np.uint8(shade) for shade in range(40)]
    assert len({size(0, pixels) for pixels in others}) > 1


def test_a_set_names_the_most_probable_first(artifact):
    found = decide(artifact, predicted(artifact, 0.5), coverage=0.99)
    assert found.prediction_set[0] == artifact.classes[PREDICTED]
    assert set(found.prediction_set) <= set(artifact.classes)
