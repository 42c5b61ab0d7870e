"""Log lines on stderr: for people on a terminal, one JSON object a line for machines.

What a caller gives as `extra={"model": ..., "update": ...}` becomes keys of the object, or key=value at the line's end.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

from service.system.log_flood import FloodFilter
from service.units import iso_time

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(log_format: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up logging for the whole process; a second call replaces the first.

    Args:
        log_format: "human", "json", or "auto": human on a terminal, else JSON.
        level: "debug", "info", "warning" or "error".
        stream: Where to; None for stderr.
    """
    stream = sys.stderr if stream is None else stream
    human = stream.isatty() if log_format == "auto" else log_format == "human"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    if level != "debug":  # whoever looks for a fault wants to see all
        handler.addFilter(FloodFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # A line for every file that anybody touches.
    logging.getLogger("watchdog").setLevel(max(root.level, logging.WARNING))
    logging.getLogger("asyncio").setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: dict[str, Any] = {
            "time": iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_added(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class HumanFormatter(logging.Formatter):
    """Time, level, message, then what the caller added; control characters escaped, so that a line stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        added = "".join(f" {key}={value}" for key, value in _added(record).items())
        message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in record.getMessage())
        text = f"{iso_time(record.created)} {record.levelname.lower():7} {message}{added}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _added(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
