"""The novelty score of any network, from its features and its entropy."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from model.novelty import FeatureNovelty, feature_statistics, novelty_from_parts
from training.feature_novelty import fit_feature_novelty


def drawn(images: int, seed: int, *, sharpness: float = 20.0, level: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features after a ReLU, and probabilities of five classes."""
    rng = np.random.default_rng(seed)
    features_NF = np.maximum(rng.normal(size=(images, 60)) * level, 0).astype(np.float32)
    logits_NC = rng.normal(size=(images, 5)) * sharpness
    probs_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return features_NF, probs_NC / probs_NC.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def novelty() -> FeatureNovelty:
    return fit_feature_novelty(*drawn(1000, 1), seed=0)


def test_false_alarms_keep_their_rates(novelty):
    scores_N = novelty.score(*drawn(20_000, 2))
    assert (scores_N > novelty.thresholds[0.05]).mean() == pytest.approx(0.05, abs=0.025)
    assert (scores_N > novelty.thresholds[0.01]).mean() == pytest.approx(0.01, abs=0.01)
    assert fit_feature_novelty(*drawn(900, 1), seed=0).thresholds[0.001] is None  # they don't show one in a thousand


@pytest.mark.parametrize("change", [{"level": 1.6}, {"level": 0.5}, {"sharpness": 0.5}])
def test_other_features_and_a_larger_entropy_score_higher(novelty, change):
    usual, other = novelty.score(*drawn(2000, 3)), novelty.score(*drawn(2000, 4, **change))
    assert (other > novelty.thresholds[0.05]).mean() > 0.3
    assert np.median(other) > np.quantile(usual, 0.75)


def test_the_score_is_the_sum_of_both_scaled_parts(novelty):
    features_NF, probs_NC = drawn(50, 5)
    deviation_NS = feature_statistics(features_NF, novelty.scale) - novelty.mean_S
    distance = [row @ novelty.precision_SS @ row for row in deviation_NS]
    parts = [(np.array(distance), "distance"), (stats.entropy(probs_NC, axis=1), "entropy")]
    expected = sum(
        (value - novelty.scales[name][0]) / np.subtract(*novelty.scales[name][::-1]) for value, name in parts
    )
    assert np.allclose(novelty.score(features_NF, probs_NC), expected)


def test_statistics_don_t_depend_on_the_unit_of_the_features():
    features_NF, probs_NC = drawn(400, 6)
    one, other = (fit_feature_novelty(factor * features_NF, probs_NC, seed=0) for factor in (1, 1024))
    assert np.allclose(one.score(features_NF, probs_NC), other.score(1024 * features_NF, probs_NC))


def test_an_image_s_score_is_independent_of_the_others(novelty):
    features_NF, probs_NC = drawn(30, 7)
    together = novelty.score(features_NF, probs_NC)
    for index in range(30):
        alone = novelty.score(features_NF[index : index + 1], probs_NC[index : index + 1])
        assert np.array_equal(alone, together[index : index + 1])


@pytest.mark.parametrize(
    ("features_NF", "probs_NC"),
    [
        drawn(99, 8),
        (np.zeros((200, 0), np.float32), drawn(200, 8)[1]),
        (np.ones((200, 4), np.float32), drawn(200, 8)[1]),
    ],
    ids=["few images", "no features", "equal features"],
)
def test_it_is_not_fitted_to_what_does_not_suffice(features_NF, probs_NC):
    assert fit_feature_novelty(features_NF, probs_NC, seed=0) is None


def test_card_and_arrays_keep_it(novelty):
    fields = json.loads(json.dumps(novelty.to_json()))
    found = novelty_from_parts(fields, novelty.arrays())
    assert replace(found, mean_S=None, precision_SS=None) == replace(novelty, mean_S=None, precision_SS=None)
    assert np.array_equal(found.score(*drawn(20, 9)), novelty.score(*drawn(20, 9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts[0].pop("scale"), "bad 'scale'"),
        (lambda parts: parts[0]["scales"].pop("entropy"), "bad 'entropy'"),
        (lambda parts: parts[0]["scales"].update(distance=[2, 1]), "expected increasing scales"),
        (lambda parts: parts[0]["thresholds"].pop("0.05"), "bad '0.05'"),
        (lambda parts: parts[1].pop("mean"), "bad 'mean'"),
        (lambda parts: parts[1].update(mean=np.zeros(4)), "don't fit"),
    ],
)
def test_invalid_parts_are_refused(novelty, change, message):
    parts = novelty.to_json(), novelty.arrays()
    change(parts)
    with pytest.raises(ValueError, match=message):
        novelty_from_parts(*parts)
