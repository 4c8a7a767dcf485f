"""Pixels -> decisions. No HTTP."""
