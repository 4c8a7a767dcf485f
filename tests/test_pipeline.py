from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from model import load_artifact
from service.decision import Decider, Decision
from service.metrics import Metrics
from service.parameters import Parameters
from service.pipeline import Pipeline, predict
from service.predictor import Predictor
from service.recent import Recent
from service.settings import Settings


@pytest.mark.parametrize("method", ["predict", "sample"])
def test_a_predictor_that_gets_the_known_image_wrong_is_not_served(monkeypatch, method):
    right = getattr(Predictor, method)

    def wrong(self, pixels_BHW, **asked):
        predictions = right(self, pixels_BHW, **asked)
        return replace(predictions, probs_BC=2 * predictions.probs_BC)

    artifact = load_artifact()
    assert Pipeline(artifact, Metrics(), Recent(None, 10), Settings()).model == artifact.sha256
    monkeypatch.setattr(Predictor, method, wrong)
    with pytest.raises(ValueError, match="a known image must get the probabilities"):
        Pipeline(artifact, Metrics(), Recent(None, 10), Settings())


@pytest.mark.parametrize("asked", [{}, {"samples": 30, "seed": 4}, {"method": "moments"}])
def test_images_together_are_predicted_as_each_alone(fashion, asked):
    predictor, asked = Predictor(load_artifact()), Parameters.gather(asked.items())
    pixels_BHW = fashion.test.images_B[:40].numpy()
    for b, one in enumerate(predict(predictor, pixels_BHW, asked).each()):
        (alone,) = predict(predictor, pixels_BHW[b : b + 1], asked).each()
        for field in fields(one):
            assert same(getattr(one, field.name), getattr(alone, field.name)), field.name


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return one == other


def test_decisions_on_images_together_are_those_on_each_alone(fashion):
    """Also where the novelty score and its threshold differ by less than rounding does."""
    artifact, asked = load_artifact(), Parameters(samples=10, set_method="aps", coverage=0.95)
    pixels_BHW = fashion.test.images_B[:300].numpy()
    predictor = Predictor(artifact)
    scores_B = [one.novelty.score for one in alone(predictor, Decider(artifact), pixels_BHW, asked)]
    for threshold in (0.5, *scores_B[:20]):
        thresholds = dict.fromkeys(artifact.novelty.thresholds, threshold)
        other = replace(artifact, novelty=replace(artifact.novelty, thresholds=thresholds))
        decider = Decider(other)
        predictions = predict(predictor, pixels_BHW, asked)
        together = Decider(other, together=True).decide(predictions, pixels_BHW, asked.demands, seed=0).each()
        for one, other in zip(together, alone(predictor, decider, pixels_BHW, asked), strict=True):
            assert one.novelty.flagged == other.novelty.flagged
            assert one.novelty.score == pytest.approx(other.novelty.score, abs=1e-4)
            assert replace(one, novelty=None) == replace(other, novelty=None)


def alone(predictor: Predictor, decider: Decider, pixels_BHW: np.ndarray, asked: Parameters) -> list[Decision]:
    found = []
    for b in range(len(pixels_BHW)):
        one = pixels_BHW[b : b + 1]
        found += decider.decide(predict(predictor, one, asked), one, asked.demands, seed=0).each()
    return found
