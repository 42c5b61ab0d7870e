"""Keeps a flood of the same message out of the log: some are let through, the rest is counted."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

BURST = 50  # lines of one kind at once: the end of a few updates
OUTPUT = "output"  # last part of the names of loggers for what children write
OUTPUT_BURST = 500  # of a traceback the last line says what it was
EVERY_S = 6.0  # and then one in this time: 3 MB a day for each kind
_KINDS = 1000  # that are remembered; those heard of last
# How messages about a model begin: a flood about one must not hide what is told of another.
_MODEL = re.compile(r"(?:model|worker of|update (%d) of) %s")


@dataclass
class _Kind:
    allowance: float
    seen_at: float
    left_out: int = 0


class FloodFilter(logging.Filter):
    """Lets through BURST records of one kind, OUTPUT_BURST of children's, then one every EVERY_S seconds.

    Records are of one kind if logger, level, model and the text without its values are the same. The next one let
    through tells as `left_out` how many were not. Nothing runs by a timer: what is counted waits for the next record.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: OrderedDict[tuple[str, int, str, str], _Kind] = OrderedDict()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record goes on."""
        name, now = (record.name, record.levelno, str(record.msg), _model_of(record)), self._clock()
        burst = OUTPUT_BURST if record.name.endswith(f".{OUTPUT}") else BURST
        with self._lock:
            kind = self._kinds.pop(name, None) or _Kind(burst, now)
            self._kinds[name] = kind  # now the last one
            if len(self._kinds) > _KINDS:
                self._kinds.popitem(last=False)
            kind.allowance = min(burst, kind.allowance + (now - kind.seen_at) / EVERY_S)
            kind.seen_at = now
            if kind.allowance < 1:
                kind.left_out += 1
                return False
            kind.allowance -= 1
            if kind.left_out:
                record.left_out, kind.left_out = kind.left_out, 0
        return True


def _model_of(record: logging.LogRecord) -> str:
    """The model that a message is about, "" if it is about none."""
    match = _MODEL.match(str(record.msg))
    if match is None or not isinstance(record.args, tuple):
        return ""
    place = 0 if match[1] is None else 1
    return str(record.args[place]) if len(record.args) > place else ""
