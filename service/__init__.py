"""The edge: bytes in, JSON out."""

__version__ = "0.1.0"
