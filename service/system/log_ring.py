"""The last lines of the log in memory, so that `edged logs` works wherever the log itself goes. Bounded."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.units import iso_time

MAX_LINES = 2000
MAX_CHARACTERS = 2000  # of a line


@dataclass(frozen=True)
class LogLine:
    """One line of the log.

    Attributes:
        number: Number of the line since the start of the process, from 1.
        at: Seconds since 1970.
        level: "debug", "info", "warning" or "error".
        message: The message as people read it, with its traceback.
    """

    number: int
    at: float
    level: str
    message: str

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types; the time as ISO 8601."""
        return {"number": self.number, "time": iso_time(self.at), "level": self.level, "message": self.message}


class LogRing(logging.Handler):
    """A log handler that keeps the last lines.

    Args:
        formatter: Returns the text of a record without its time and level.
        lines: Number of lines to keep.
    """

    def __init__(self, formatter: logging.Formatter, lines: int = MAX_LINES) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines: deque[LogLine] = deque(maxlen=lines)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; the logging module holds the handler's lock meanwhile."""
        try:
            text = self.format(record)
        except Exception:  # as every handler does: a bad record must not fail its caller
            self.handleError(record)
            return
        self._count += 1
        cut = text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."
        self._lines.append(LogLine(self._count, record.created, record.levelname.lower(), cut))

    def lines(self) -> list[LogLine]:
        """Return the lines that are kept, the oldest first."""
        self.acquire()
        try:
            return list(self._lines)
        finally:
            self.release()


def about(messages: Sequence[str], model: str | None, update: int | None) -> Iterator[int]:
    """Yield the indices of the messages about a model and an update; None stands for any.

    The output of a worker names its model only, so it belongs to an update if it is between two lines about it.
    """
    named = None if model is None else re.compile(rf"(?<![\w.-]){re.escape(model)}(?![\w-]|\.\w)")
    numbered = None if update is None else re.compile(rf"\bupdate {update}\b")
    of_update = [index for index, text in enumerate(messages) if numbered is not None and numbered.search(text)]
    owner = next((found[1] for i in of_update if (found := _OWNER.search(messages[i])) is not None), None)
    within = range(of_update[0], of_update[-1] + 1) if of_update else range(0)
    wanted = set(of_update)
    for index, text in enumerate(messages):
        of_worker = index in within and owner is not None and text.startswith(f"worker of {owner}:")
        if (update is None or index in wanted or of_worker) and (named is None or named.search(text)):
            yield index


_OWNER = re.compile(r"\bupdate \d+ of ([\w.-]*\w)")
