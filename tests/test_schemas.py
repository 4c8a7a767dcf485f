import base64
import json

import pytest

from service.images import Invert
from service.schemas import Call, Parameters, Problem, call_from_json


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
        ({"method": "moments", "samples": 10}, "samples must be left out with method=moments, which draws none"),
        ({"method": "moments", "samples": "auto"}, "samples must be left out with method=moments, which draws none"),
        ({"tolerance": 0.01}, "tolerance goes with samples=auto only"),
        ({"samples": 10, "max_samples": 20}, "max_samples goes with samples=auto only"),
        ({"method": "moments", "tolerance": 0.01}, "tolerance goes with samples=auto only"),
    ],
)
def test_what_doesnt_go_together_is_refused(given, detail):
    assert refusal(given.items()).detail == detail
    assert refusal([(name, str(value)) for name, value in given.items()]).detail == detail


def test_moments_take_no_samples_but_may_be_told_so():
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
        ("samples", " 10", "samples must be a whole number, got  10"),
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
        ("set_method", "raps", "set_method input should be 'lac' or 'aps', got raps"),
        ("seed", "-1", "seed input should be greater than or equal to 0, got -1"),
        ("seed", 2**63, f"seed input should be less than or equal to {2**63 - 1}, got {2**63}"),
        ("invert", "maybe", "invert input should be 'auto', 'yes' or 'no', got maybe"),
        ("dtype", "float64", "dtype input should be 'uint8' or 'float', got float64"),
        (
            "sample",
            "10",
            (
                "sample is unknown; known are image, method, samples, tolerance, max_samples, seed, coverage, "
                "set_method, max_risk, false_alarm_rate, calibrated, invert, dtype"
            ),
        ),
    ],
)
def test_a_refusal_names_parameter_rule_and_value(name, value, detail):
    problem = refusal([(name, value)])
    assert problem.detail == detail
    assert problem.errors == [{"parameter": name, "detail": detail.removeprefix(f"{name} ")}]


def test_every_fault_of_a_request_is_told_at_once():
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


def test_json_carries_an_array_or_base64_with_or_without_a_data_url():
    encoded = base64.b64encode(b"\x89PNG").decode()
    assert call_from_json(b'{"image": [1, 2]}', []) == Call([1, 2])
    for text in (encoded, f"data:image/png;base64,{encoded}", f"{encoded[:3]}\n{encoded[3:]}"):
        body = json.dumps({"image": text, "samples": 10}).encode()
        assert call_from_json(body, [("seed", "5")]) == Call(b"\x89PNG", Parameters(samples=10, seed=5))


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 400, "malformed-body"),
        (b"{", 400, "malformed-body"),
        (b'{"image": NaN}', 400, "malformed-body"),
        (b"\xff\xfe", 400, "malformed-body"),
        (b"[" * 100_000, 400, "malformed-body"),
        (b"[]", 422, "invalid-body"),
        (b"null", 422, "invalid-body"),
        (b"{}", 422, "invalid-parameter"),
        (b'{"image": 5}', 422, "invalid-parameter"),
        (b'{"image": null}', 422, "invalid-parameter"),
        (b'{"image": "not base64!"}', 422, "invalid-parameter"),
        ('{"image": "é"}'.encode(), 422, "invalid-parameter"),
        (b'{"image": [0], "samples": {}}', 422, "invalid-parameter"),
    ],
)
def test_malformed_json_bodies_are_refused(body, status, kind):
    with pytest.raises(Problem) as refused:
        call_from_json(body, [])
    assert (refused.value.status, refused.value.kind) == (status, kind)
