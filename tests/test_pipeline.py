from dataclasses import replace

import pytest

from model import load_artifact
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.predictor import Predictor
from service.recent import Recent
from service.settings import Settings


@pytest.mark.parametrize("method", ["predict", "sample"])
def test_a_predictor_that_gets_the_known_image_wrong_is_not_served(monkeypatch, method):
    right = getattr(Predictor, method)

    def wrong(self, pixels, **asked):
        prediction = right(self, pixels, **asked)
        return replace(prediction, probabilities=[2 * value for value in prediction.probabilities])

    artifact = load_artifact()
    assert Pipeline(artifact, Metrics(), Recent(None, 10), Settings()).model == artifact.sha256
    monkeypatch.setattr(Predictor, method, wrong)
    with pytest.raises(ValueError, match="a known image must get the probabilities"):
        Pipeline(artifact, Metrics(), Recent(None, 10), Settings())
