"""Monitoring for operators: logs, metrics, drift and recent predictions."""
