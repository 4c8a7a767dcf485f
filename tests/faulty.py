"""The service, with a fault on purpose: the seed 13 fails."""

from service.pipeline import Pipeline
from service.service import UncertaintyService

_evaluate = Pipeline._evaluate


def _fail_or_evaluate(self, group, sampling, options, run):
    if sampling.seed == 13:
        raise RuntimeError("a fault on purpose")
    return _evaluate(self, group, sampling, options, run)


Pipeline._evaluate = _fail_or_evaluate

__all__ = ["UncertaintyService"]
