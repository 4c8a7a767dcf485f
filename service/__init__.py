"""The edge: bytes in, JSON out."""
