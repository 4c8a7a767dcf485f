"""Bulk scoring of whole data sets on Ray Data: `python -m service.bulk IN OUT`."""
