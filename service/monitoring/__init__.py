"""What operators see: logs, metrics, drift and the newest predictions."""
