"""Logs: one JSON object per line on standard output."""

import logging
import sys
import time
from typing import Any

from pydantic_core import to_json

LOGGER = logging.getLogger("mcd")


class _JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time (ISO 8601, UTC), level, event, and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return to_json(line).decode()


def write_log(level: str) -> None:
    """Make our logger write JSON lines to standard output.

    Args:
        level: lowest level that is logged: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
    # Its warnings are about malformed forms, which the answer to the client already describes.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
