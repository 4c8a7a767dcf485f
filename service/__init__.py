"""The HTTP service: images in, predictions with their uncertainty out."""

__version__ = "0.1.0"
