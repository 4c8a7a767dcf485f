import json

import pytest

from service.inference.preparation import Invert
from service.schemas.parameters import Parameters, RankParameters
from service.schemas.problems import Problem


def refusal(*sources) -> Problem:
    with pytest.raises(Problem) as refused:
        Parameters.gather(*sources)
    assert refused.value.status == 422
    return refused.value


def test_nothing_said_is_eval_mode():
    assert Parameters.gather([], []) == Parameters(samples=0, seed=0, invert=Invert.AUTO, dtype="uint8")


def test_text_and_json_values_mean_the_same():
    text = [("samples", "100"), ("seed", "7"), ("invert", "no"), ("dtype", "float"), ("method", "masks")]
    values = {"samples": 100, "seed": 7.0, "invert": "no", "dtype": "float", "method": "masks"}
    expected = Parameters(samples=100, seed=7, invert=Invert.NO, dtype="float")
    assert Parameters.gather(text) == Parameters.gather(values.items()) == expected
    text = [("samples", "auto"), ("tolerance", "1e-2"), ("max_samples", "50")]
    values = {"samples": "auto", "tolerance": 0.01, "max_samples": 50}
    expected = Parameters(samples="auto", tolerance=0.01, max_samples=50)
    assert Parameters.gather(text) == Parameters.gather(values.items()) == expected


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ({"method": "moments", "samples": 10}, "samples must be left out with method=moments, which does not sample"),
        (
            {"method": "moments", "samples": "auto"},
            "samples must be left out with method=moments, which does not sample",
        ),
        ({"tolerance": 0.01}, "tolerance can be used with samples=auto only"),
        ({"samples": 10, "max_samples": 20}, "max_samples can be used with samples=auto only"),
        ({"method": "moments", "tolerance": 0.01}, "tolerance can be used with samples=auto only"),
    ],
)
def test_what_doesnt_go_together_is_refused(given, detail):
    assert refusal(given.items()).detail == detail
    assert refusal([(name, str(value)) for name, value in given.items()]).detail == detail


def test_moments_accept_zero_samples_only():
    assert Parameters.gather([("method", "moments"), ("samples", "0")]).method == "moments"


def test_a_parameter_may_be_repeated_but_not_contradicted():
    assert Parameters.gather([("samples", "10")], [("samples", 10)]).samples == 10
    assert refusal([("samples", "10")], [("samples", "20")]).detail == "samples given twice: 10 and 20"


@pytest.mark.parametrize("samples", [0, 2, 3, 999, 1000])
def test_samples_in_range_are_taken(samples):
    assert Parameters.gather([("samples", str(samples))]).samples == samples


@pytest.mark.parametrize(
    ("name", "value", "detail"),
    [
        ("samples", "1", "samples must be 0, 2..1000 or auto, got 1: one mask has no spread"),
        ("samples", 1001, "samples must be 0, 2..1000 or auto, got 1001"),
        ("samples", "-5", "samples must be 0, 2..1000 or auto, got -5"),
        ("samples", "1e2", "samples must be a whole number, got 1e2"),
        ("samples", "", "samples must be a whole number, got "),
        ("samples", "1 0", "samples must be a whole number, got 1 0"),
        ("samples", "1_0", "samples must be a whole number, got 1_0"),
        ("samples", "\uff11\uff10", "samples must be a whole number, got \uff11\uff10"),  # full-width digits
        ("samples", 10.5, "samples must be a whole number, got 10.5"),
        ("samples", True, "samples must be a whole number, got True"),
        ("samples", None, "samples must be a whole number, got None"),
        ("samples", [10], r"samples must be a whole number, got [10]"),
        ("samples", "9" * 50, f"samples must be a whole number, got {'9' * 40}…"),
        ("method", "mask", "method input should be 'masks' or 'moments', got mask"),
        ("samples", "automatic", "samples must be a whole number, got automatic"),
        ("coverage", "0.85", "coverage must be one of 0.8, 0.9, 0.95, 0.99, got 0.85"),
        ("coverage", "nan", "coverage must be one of 0.8, 0.9, 0.95, 0.99, got nan"),
        ("coverage", True, "coverage must be one of 0.8, 0.9, 0.95, 0.99, got True"),
        ("coverage", [0.9], "coverage must be one of 0.8, 0.9, 0.95, 0.99, got [0.9]"),
        ("max_risk", 0.1, "max_risk must be one of 0.01, 0.02, 0.05, got 0.1"),
        ("false_alarm_rate", "some", "false_alarm_rate must be one of 0.001, 0.01, 0.05, got some"),
        ("set_method", "best", "set_method input should be 'lac', 'aps', 'raps' or 'mondrian', got best"),
        ("seed", "-1", "seed input should be greater than or equal to 0, got -1"),
        ("seed", 2**63, f"seed input should be less than or equal to {2**63 - 1}, got {2**63}"),
        ("invert", "maybe", "invert input should be 'auto', 'yes' or 'no', got maybe"),
        ("dtype", "float64", "dtype input should be 'uint8' or 'float', got float64"),
        (
            "sample",
            "10",
            (
                "sample is unknown; valid names are image, method, samples, tolerance, max_samples, seed, calibrated, "
                "invert, dtype, coverage, set_method, max_risk, false_alarm_rate, "
                "return_samples, return_pixels, top_k"
            ),
        ),
    ],
)
def test_a_refusal_names_parameter_rule_and_value(name, value, detail):
    problem = refusal([(name, value)])
    assert problem.detail == detail
    assert problem.errors == [{"parameter": name, "detail": detail.removeprefix(f"{name} ")}]


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**4000, 1e400, float("nan"), "1e999", "9" * 400])
@pytest.mark.parametrize("name", ["samples", "seed", "tolerance", "max_samples", "coverage", "max_risk", "calibrated"])
def test_numbers_too_large_for_anything_are_refused(name, value):
    assert [
        error["parameter"] for error in refusal([("samples", "auto"), (name, value)][name == "samples" :]).errors
    ] == [name]


def test_all_invalid_parameters_are_reported_together():
    assert [error["parameter"] for error in refusal([("samples", "1"), ("seed", "x"), ("foo", "1")]).errors] == [
        "samples",
        "seed",
        "foo",
    ]


def test_a_problem_is_encoded_as_rfc_9457_says():
    document = json.loads(refusal([("seed", "x")]).body())
    assert document == {
        "type": "urn:mcd:problem:invalid-parameter",
        "title": "Invalid parameter",
        "status": 422,
        "detail": "seed must be a whole number, got x",
        "errors": [{"parameter": "seed", "detail": "must be a whole number, got x"}],
    }


def test_samples_are_returned_where_there_are_some():
    assert Parameters.gather([("return_samples", "true"), ("samples", "auto")]).return_samples
    for given in ({"return_samples": True}, {"return_samples": "true", "method": "moments"}):
        assert "return_samples needs samples" in refusal(given.items()).detail


def test_ranking_uses_masks_by_default():
    assert RankParameters.gather([]).max_masks == 100
    assert RankParameters.gather([("method", "moments")]).max_masks == 0
    assert RankParameters.gather([("samples", "auto"), ("max_samples", "50")]).max_masks == 50
    assert RankParameters.gather([("samples", "0"), ("by", "margin"), ("limit", "3")]).limit == 3


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ({"samples": 0}, "samples must be 2 or more, or auto, for by=bald with method=masks"),
        ({"method": "moments", "samples": 10}, "samples must be left out with method=moments, which does not sample"),
        ({"by": "variance"}, "by input should be 'bald', 'entropy', 'margin' or 'least_confidence', got variance"),
        ({"limit": 0}, "limit input should be greater than or equal to 1, got 0"),
        ({"limit": "many"}, "limit must be a whole number, got many"),
    ],
)
def test_what_a_pool_cannot_be_ranked_by_is_refused(given, detail):
    with pytest.raises(Problem) as refused:
        RankParameters.gather(given.items())
    assert refused.value.detail == detail


def test_ranking_refuses_unused_parameters():
    with pytest.raises(Problem, match=r"coverage is unknown; valid names are image, method, .*, by, limit"):
        RankParameters.gather([("coverage", "0.9")])


@pytest.mark.parametrize("text", ["30", " 30 ", "+30", "30.0", "030", 30, 30.0])
def test_a_whole_number_may_be_spelled_in_other_ways(text):
    assert Parameters.gather([("samples", text)]).samples == 30


@pytest.mark.parametrize("text", ["0.5", ".5", " +0.50 ", "5e-1", "5.e-1"])
def test_a_number_may_be_spelled_in_other_ways(text):
    assert Parameters.gather([("samples", "auto"), ("tolerance", text)]).tolerance == 0.5


@pytest.mark.parametrize(("texts", "value"), [(["true", "True", "1", "yes", "ON"], True), (["no", "0", "off"], False)])
def test_a_boolean_may_be_spelled_in_other_ways(texts, value):
    for text in texts:
        assert Parameters.gather([("return_pixels", text)]).return_pixels is value


def test_spellings_of_one_value_agree():
    given = [("samples", "10"), ("samples", 10.0), ("samples", " +10"), ("calibrated", "True"), ("calibrated", True)]
    assert Parameters.gather(given).samples == 10
    with pytest.raises(Problem, match="given twice"):
        Parameters.gather([("samples", "10"), ("samples", "11")])
