"""Training: data, recipes, fitting, calibration, evaluation and artifacts."""
