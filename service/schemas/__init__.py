"""Schemas of parameters, answers and problems."""
