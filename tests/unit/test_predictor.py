"""Predictions of several images, split."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from model import load_artifact
from service.inference.predictor import Predictor


@pytest.mark.parametrize("method", ["predict", "propagate", "sample"])
def test_predictions_of_a_batch_are_those_of_each_image(served, method):
    predictor, pixels_B = Predictor(served.artifact), served.pixels_B[:5]
    if method == "propagate" and "moments" not in served.methods:
        with pytest.raises(ValueError, match="moments need linear layers"):
            predictor.propagate(pixels_B)
        return
    predict = partial(getattr(predictor, method), **({"samples": 20, "seed": 4} if method == "sample" else {}))
    together = predict(pixels_B).each()
    assert len(together) == len(pixels_B)
    for index, one in enumerate(together):
        (alone,) = predict(pixels_B[index : index + 1]).each()
        assert (one.label, one.class_index, one.samples, one.agreement) == (
            alone.label,
            alone.class_index,
            alone.samples,
            alone.agreement,
        )
        assert one.probabilities == alone.probabilities
        assert one.label == predictor.classes[int(np.argmax(one.probabilities))]
        assert one.mutual_information == alone.mutual_information
        assert (one.uncertainty is None) == (one.estimator == "eval")
        if one.uncertainty is not None:
            for field in dataclasses.fields(one.uncertainty):
                values = [np.asarray(getattr(each.uncertainty, field.name)) for each in (one, alone)]
                assert np.array_equal(*values)
        if one.probs_SBC is not None:
            votes = np.asarray(one.probs_SBC)[:, 0].argmax(axis=1)
            assert one.agreement == np.mean(votes == one.class_index)


def test_a_model_without_moments_says_why():
    embedded = load_artifact()
    chain = {"unavailable": "fc: moments pass through linear layers"}
    other = dataclasses.replace(embedded, config=None, weights={}, card=embedded.card | {"chain": chain})
    predictor = Predictor(other)
    assert predictor.moments_unavailable == "fc: moments pass through linear layers"
    with pytest.raises(ValueError, match="fc: moments pass through linear layers"):
        predictor.propagate(np.zeros((1, 28, 28), np.uint8))
