from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from files import encoded, png
from PIL import Image

from service.inference.decision import Decision, DecisionPolicy
from service.inference.formats import read_structure
from service.inference.limits import ImageLimits
from service.inference.predictor import Predictor
from service.inference.preparation import prepare_all
from service.monitoring.metrics import Metrics
from service.monitoring.observer import PredictionObserver
from service.monitoring.prediction_log import PredictionLog
from service.pipeline import Pipeline, Run, _predict
from service.schemas.parameters import Parameters, RankParameters
from service.schemas.problems import Problem

LIMITS = ImageLimits(25_000_000)


def changed(predict, change):
    """A method of the predictor that gives other probabilities."""

    def wrong(self, pixels_B, **asked):
        predictions = predict(self, pixels_B, **asked)
        return replace(predictions, probs_BC=change(predictions.probs_BC))

    return wrong


@pytest.mark.parametrize("method", ["predict", "sample"])
def test_wrong_predictor_is_not_served(served, monkeypatch, method):
    assert Pipeline(served.artifact, LIMITS).model == served.artifact.sha256
    monkeypatch.setattr(Predictor, method, changed(getattr(Predictor, method), lambda probs_BC: 2 * probs_BC))
    with pytest.raises(ValueError, match="the example image must get probabilities that sum to 1"):
        Pipeline(served.artifact, LIMITS)


def test_predictions_other_than_those_of_the_layers_are_not_served(embedded, monkeypatch):
    monkeypatch.setattr(Predictor, "predict", changed(Predictor.predict, lambda probs_BC: probs_BC[:, ::-1]))
    with pytest.raises(ValueError, match="the example image must get the probabilities"):
        Pipeline(embedded.artifact, LIMITS)


@pytest.mark.parametrize("asked", [{}, {"samples": 30, "seed": 4}, {"method": "moments"}])
def test_images_together_are_predicted_as_each_alone(served, asked):
    if asked.get("method", "masks") not in served.methods:
        asked = {"samples": 100}
    predictor, asked = Predictor(served.artifact), Parameters.gather(asked.items())
    pixels_B = served.pixels_B[:40]
    for b, one in enumerate(_predict(predictor, pixels_B, asked).each()):
        (alone,) = _predict(predictor, pixels_B[b : b + 1], asked).each()
        for field in fields(one):
            assert same(getattr(one, field.name), getattr(alone, field.name)), field.name


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return one == other


def test_decisions_on_images_together_are_those_on_each_alone(served):
    """Also where the novelty score and its threshold differ by less than rounding does."""
    artifact, asked = served.artifact, Parameters(samples=10, set_method="aps", coverage=0.95)
    pixels_BHW = served.pixels_B[:60]
    predictor = Predictor(artifact)
    scores_B = [one.novelty.score for one in alone(predictor, DecisionPolicy(artifact), pixels_BHW, asked)]
    for threshold in (0.5, *scores_B[:20]):
        thresholds = dict.fromkeys(artifact.novelty.thresholds, threshold)
        other = replace(artifact, novelty=replace(artifact.novelty, thresholds=thresholds))
        decider = DecisionPolicy(other)
        predictions = _predict(predictor, pixels_BHW, asked)
        together = (
            DecisionPolicy(other, together=True).decide(predictions, pixels_BHW, asked.decision_options, seed=0).each()
        )
        for one, other in zip(together, alone(predictor, decider, pixels_BHW, asked), strict=True):
            assert one.novelty.flagged == other.novelty.flagged
            assert one.novelty.score == pytest.approx(other.novelty.score, abs=1e-4)
            assert replace(one, novelty=None) == replace(other, novelty=None)


def alone(predictor: Predictor, decider: DecisionPolicy, pixels_BHW: np.ndarray, asked: Parameters) -> list[Decision]:
    found = []
    for b in range(len(pixels_BHW)):
        one = pixels_BHW[b : b + 1]
        found += decider.decide(_predict(predictor, one, asked), one, asked.decision_options, seed=0).each()
    return found


TALL = png(np.pad(np.full((20, 10), 200, np.uint8), 4))  # grey, of no network's size
ONE, OTHER = (encoded(Image.new("RGB", (28, 28), colour)) for colour in ("red", "blue"))


@pytest.fixture(scope="module")
def pipeline(served) -> Pipeline:
    metrics, recent = Metrics(), PredictionLog(None, 100)
    artifact = served.artifact
    observer = PredictionObserver(metrics, recent, artifact.classes)
    made = Pipeline(artifact, ImageLimits(3000), observer=observer)
    metrics.model(made.model, made.recipe, made.classes)
    return made


def outcomes(pipeline: Pipeline, images: list[bytes]) -> list[str]:
    """What becomes of images together: their labels, or the kinds of their problems; ranking them tells the same."""
    answers = list(pipeline.answers(images, Parameters(), Run("request-1")))
    ranked = pipeline.rank(images, RankParameters(by="entropy", samples=0), Run("request-2"))
    refused = {one.index: one.error["type"].rpartition(":")[2] for one in ranked.errors}
    found = [answer.kind if isinstance(answer, Problem) else answer.label for answer in answers]
    assert refused == {index: one for index, one in enumerate(found) if isinstance(answers[index], Problem)}
    assert sorted(ranked.indices) == [index for index in range(len(images)) if index not in refused]
    return found


def told(caplog, event: str) -> list[str]:
    return [record.fields["request_id"] for record in caplog.records if record.message == event]


def test_decoder_error_affects_only_its_image(pipeline, monkeypatch, caplog):
    def fails_on_one(file, **options):
        if file.getvalue() == read_structure(ONE).data:
            raise AssertionError("deep inside")
        return open_by_pillow(file, **options)

    (label,) = outcomes(pipeline, [TALL])
    (other,) = outcomes(pipeline, [OTHER])
    open_by_pillow = Image.open
    monkeypatch.setattr(Image, "open", fails_on_one)
    assert outcomes(pipeline, [TALL, ONE, OTHER]) == [label, "invalid-image", other]
    assert told(caplog, "decoder failed") == ["request-1", "request-2"]


def test_a_fault_of_ours_on_one_image_spoils_no_other(pipeline, monkeypatch, caplog):
    def fails_on_one(decoded, **options):
        decoded = list(decoded)
        if any(one.pixels.shape[:2] == (28, 28) for one in decoded):
            raise RuntimeError("a fault of ours")
        return prepare_all(decoded, **options)

    (label,) = outcomes(pipeline, [TALL])
    monkeypatch.setattr("service.pipeline.prepare_all", fails_on_one)
    assert outcomes(pipeline, [TALL, ONE, TALL]) == [label, "internal-error", label]
    assert told(caplog, "failure") == ["request-1", "request-2"]


def test_the_images_of_a_request_share_its_pixels(pipeline):
    large = encoded(Image.new("L", (40, 50)))
    (label,) = outcomes(pipeline, [large])
    assert outcomes(pipeline, [large, large, large])[1:] == ["image-too-large"] * 2
    small = encoded(Image.new("L", (10, 10)))
    assert outcomes(pipeline, [large, large, small])[0] == label
    assert outcomes(pipeline, [large, large, small])[1:] == ["image-too-large", *outcomes(pipeline, [small])]


@pytest.fixture(scope="module")
def roomy(served) -> Pipeline:
    return Pipeline(served.artifact, LIMITS)


@pytest.mark.parametrize(
    ("parameters", "steps"), [({}, 3), ({"samples": 200}, 5), ({"samples": "auto", "max_samples": 20}, 130)]
)
def test_a_long_request_is_answered_in_steps_as_each_alone(served, roomy, parameters, steps):
    """Also where an image that can't be read is the last of a step or the first of the next."""
    images = [png(pixels) for pixels in served.pixels_B[:130]]
    for index in (0, 31, 32, 63, 64, 129):
        images[index] = b"not an image"
    asked, checked = Parameters(**parameters), []
    answers = list(roomy.answers(images, asked, Run(checkpoint=lambda: checked.append(True))))
    assert len(checked) == steps
    for image, answer in zip(images, answers, strict=True):
        (alone,) = roomy.answers([image], asked, Run())
        if isinstance(answer, Problem):
            assert answer.document() == alone.document()
        else:
            assert answer.model_dump_json() == alone.model_dump_json()


def test_a_checkpoint_ends_a_request_between_its_steps(roomy):
    def stop_at_the_second() -> None:
        if next(steps):
            raise TimeoutError

    steps = iter([False, True])
    answers = roomy.answers([ONE] * 65, Parameters(), Run(checkpoint=stop_at_the_second))
    for _ in range(64):
        next(answers)
    with pytest.raises(TimeoutError):
        next(answers)
