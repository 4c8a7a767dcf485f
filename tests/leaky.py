"""The service, with a leak on purpose: what the soak test must notice."""

from service.pipeline import Pipeline
from service.service import UncertaintyService

_kept: list[bytearray] = []
_answer = Pipeline.answer


def _answer_and_keep(self, opened, parameters, stages):
    _kept.append(bytearray(b"x") * 20_000)
    return _answer(self, opened, parameters, stages)


Pipeline.answer = _answer_and_keep

__all__ = ["UncertaintyService"]
