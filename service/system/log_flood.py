"""A log filter that limits the rate of repeated messages and counts those it drops."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

BURST = 50  # records of one kind at once: enough for the end of a few updates
OUTPUT = "output"  # last part of the names of loggers for the output of child processes
OUTPUT_BURST = 500  # the last line of a traceback names the error
EVERY_S = 6.0  # seconds between records after the burst: 3 MB a day for each kind
_KINDS = 1000  # number of kinds that are remembered, the most recent ones
# Start of messages about a model: a flood about one model must not hide messages about another.
_MODEL = re.compile(r"(?:model|worker of|update (%d) of) %s")


@dataclass
class _Kind:
    allowance: float
    seen_at: float
    left_out: int = 0


class FloodFilter(logging.Filter):
    """A filter that passes a burst of records of one kind, then one every EVERY_S seconds.

    The burst is OUTPUT_BURST records for the output of child processes and BURST for all others.

    Records are of one kind if their logger, level, model and message template are the same. The next record that
    passes has the number of dropped records as `left_out`. There is no timer: the number is logged with that record.

    Args:
        clock: Function that returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: OrderedDict[tuple[str, int, str, str], _Kind] = OrderedDict()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record passes."""
        name, now = (record.name, record.levelno, str(record.msg), _model_of(record)), self._clock()
        burst = OUTPUT_BURST if record.name.endswith(f".{OUTPUT}") else BURST
        with self._lock:
            kind = self._kinds.pop(name, None) or _Kind(burst, now)
            self._kinds[name] = kind  # moved to the end, as the most recent kind
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
    """Return the model that a message is about, or "" if it is about none."""
    match = _MODEL.match(str(record.msg))
    if match is None or not isinstance(record.args, tuple):
        return ""
    place = 0 if match[1] is None else 1
    return str(record.args[place]) if len(record.args) > place else ""
