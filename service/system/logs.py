"""Log lines on stderr: plain text on a terminal, otherwise one JSON object per line.

Fields that a caller passes as `extra={"model": ..., "update": ...}` become keys of the object, or key=value at the end
of the line.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

from service.system.log_flood import FloodFilter
from service.units import iso_time

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(
    log_format: str = "auto", level: str = "info", stream: TextIO | None = None, ring: logging.Handler | None = None
) -> None:
    """Configure logging for the whole process; a second call replaces the first.

    Args:
        log_format: "human", "json", or "auto": human on a terminal, otherwise JSON.
        level: Lowest level that is logged: "debug", "info", "warning" or "error".
        stream: Stream to write to; None for stderr.
        ring: Another handler, which gets the same records; None for no other.
    """
    stream = sys.stderr if stream is None else stream
    human = stream.isatty() if log_format == "auto" else log_format == "human"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    for each in (handler,) if ring is None else (handler, ring):
        each.filters.clear()  # of an earlier call
        if level != "debug":  # debugging needs every message
            each.addFilter(FloodFilter())
        root.addHandler(each)
    root.setLevel(level.upper())
    # At debug level, watchdog logs a line for every file that changes.
    logging.getLogger("watchdog").setLevel(max(root.level, logging.WARNING))
    logging.getLogger("asyncio").setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """A formatter of JSON lines: time, level, logger, message, then the fields that the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON object."""
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


class MessageFormatter(logging.Formatter):
    """A formatter of plain text: the message, then the fields that the caller added.

    Control characters are escaped, so that a message stays on one line.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by its traceback if it has one."""
        added = "".join(f" {key}={value}" for key, value in _added(record).items())
        message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in record.getMessage())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{message}{added}{trace}"


class HumanFormatter(MessageFormatter):
    """A formatter of plain text: time, level, then the message as `MessageFormatter` has it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by its traceback if it has one."""
        return f"{iso_time(record.created)} {record.levelname.lower():7} {super().format(record)}"


def _added(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
