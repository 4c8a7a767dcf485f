"""The sentences of explanations.js about predictions that no shared server gives."""

from typing import get_args

import pytest
from playwright.sync_api import Page

from model.calibration import SetMethod
from model.novelty import View

ANSWER = {
    "label": "k4", "class_index": 1, "confidence": 0.976, "probabilities": [0.024, 0.976], "mode": "mc", "samples": 2,
    "uncertainty": {"variance": [0.01, 0.01], "standard_error": [0.01, 0.01], "predictive_entropy": 0.2,
                    "expected_entropy": 0.1, "mutual_information": 0.1},
    "calibrated": True, "prediction_set": [], "coverage": 0.8, "set_method": "lac", "abstain": True,
    "abstain_reason": "risk", "abstain_threshold": None, "max_risk": 0.05,
    "novelty": {"score": 1.23, "threshold": None, "flagged": False, "view": "features"},
    "sample_probabilities": [[0.1, 0.9], [0.02, 0.98]], "warnings": [],
}  # fmt: skip


def call(page: Page, function: str, **changes: object) -> object:
    script = f"async (answer) => (await import('/ui/explanations.js')).{function}(answer, 2)"
    return page.evaluate(script, ANSWER | changes)


def explained(page: Page, name: str, **changes: object) -> tuple[str, str, str]:
    (row,) = [row for row in call(page, "explainNumbers", **changes) if row[0] == name]
    return tuple(row[1:])


def test_a_class_name_is_shown_as_it_is(shared_page):
    assert call(shared_page, "summary")["label"] == "k4?"
    assert call(shared_page, "summary", abstain=False, abstain_reason=None)["label"] == "k4"


@pytest.mark.parametrize(("threshold", "words"), [(None, "no guarantee that at most 5 %"), (0.99, "below 99.0 %")])
def test_a_risk_without_guarantee_is_not_explained_by_a_threshold(shared_page, threshold, words):
    texts = call(shared_page, "summary", abstain_threshold=threshold)
    assert words in texts["sentence"]
    assert ("below" in texts["sentence"]) == (threshold is not None)
    assert texts["sentence"].startswith("All 2 masks predict k4. A person should decide")


def test_a_novelty_score_is_compared_with_its_threshold_if_there_is_one(shared_page):
    _, unit, sentence = explained(shared_page, "Novelty score")
    assert unit == "no threshold"
    assert "there is no threshold, and no image is flagged" in sentence
    novelty = {"score": 1.23, "threshold": 2.5, "flagged": False, "view": "pose"}
    _, unit, sentence = explained(shared_page, "Novelty score", novelty=novelty)
    assert unit == "threshold 2.50"
    assert "Above the threshold, the image is out-of-distribution." in sentence


def test_novelty_is_explained_by_the_view_that_finds_it(shared_page):
    sentences = {
        view: call(
            shared_page, "summary", abstain_reason="novelty",
            novelty={"score": 3.0, "threshold": 2.5, "flagged": True, "view": view},
        )["sentence"]
        for view in get_args(View)
    }  # fmt: skip
    assert len(set(sentences.values())) == len(sentences)
    assert "turned, moved, smaller or covered (novelty score 3.00, threshold 2.50)" in sentences["pose"]


def test_an_empty_set_of_a_probable_class_is_explained_without_calling_it_improbable(shared_page):
    value, unit, sentence = explained(shared_page, "Prediction set")
    assert (value, unit) == ("empty", "0 classes")
    assert sentence.startswith("Prediction sets contain the true class of 80 % of all images.")
    assert "likely" not in sentence


def test_the_explanation_of_a_set_says_what_its_method_covers(shared_page):
    sentences = {
        method: explained(shared_page, "Prediction set", set_method=method)[2] for method in get_args(SetMethod)
    }
    assert len(set(sentences.values())) == len(sentences)
    for method, sentence in sentences.items():
        covered = "of the images of each class." if method == "mondrian" else "of all images."
        assert sentence.startswith(f"Prediction sets contain the true class of 80 % {covered}")
