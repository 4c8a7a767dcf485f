"""A thousand different requests at once."""

from mixed_load import check_mixed_requests


def test_a_thousand_mixed_requests_are_answered_as_if_alone(server, embedded):
    check_mixed_requests(server, embedded, 1000)
