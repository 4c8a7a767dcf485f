"""A calibration with thresholds that are easy to compute with; one of them is missing."""

from dataclasses import replace

from model import load_artifact
from model.calibration import COVERAGES

FITTED = load_artifact().calibrations[0]
CALIBRATION = replace(
    FITTED,
    set_scores={
        **FITTED.set_scores,
        "lac": dict(zip(COVERAGES, (0.3, 0.5, 0.7, 0.9), strict=True)),
        "aps": dict(zip(COVERAGES, (0.6, 0.8, 0.9, None), strict=True)),
    },
)
