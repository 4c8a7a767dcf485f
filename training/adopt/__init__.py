"""Adopts a network that somebody else trained: compiles it, calibrates it, and writes an artifact to serve."""
