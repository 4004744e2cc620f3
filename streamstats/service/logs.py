"""Logs as JSON, one object a line: when, how grave, what, and of which job, store or request. Never a token."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

FIELDS = (
    *("job", "submitter", "kind", "pid", "attempt", "state", "status"),
    *("store", "layer", "request", "method", "path", "seconds", "address"),
)


class JsonLines(logging.Formatter):
    """A record as an object of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        document |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            document["error"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def log_as_json() -> None:
    """Have what the service and its server log go to stderr as JSON."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines())
    for name in ("streamstats.service", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [lines], False
        logger.setLevel(logging.INFO if name == "streamstats.service" else logging.WARNING)
