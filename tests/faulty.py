"""The service, with a fault on purpose: the seed 13 fails."""

from service.pipeline import Pipeline
from service.service import UncertaintyService

_answer = Pipeline.answer


def _fail_or_answer(self, opened, parameters, stages):
    if parameters.seed == 13:
        raise RuntimeError("a fault on purpose")
    return _answer(self, opened, parameters, stages)


Pipeline.answer = _fail_or_answer

__all__ = ["UncertaintyService"]
