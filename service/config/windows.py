"""Maintenance windows: times of day in which the device may quantize, written like `22:00-06:00, 12:30-13:30`.

The functions are pure; the caller passes the time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DAY_MIN = 24 * 60
_WINDOW = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")


@dataclass(frozen=True)
class Window:
    """A range of times of day, which spans midnight if its end is earlier than its start.

    Attributes:
        start: First minute of the window, in minutes after midnight, 0 to 1439.
        end: First minute after the window, in minutes after midnight, 1 to 1440.
    """

    start: int
    end: int

    def holds(self, minute: int) -> bool:
        """Return whether the window is open in a minute of the day, 0 to 1439."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.start, self.end))


def parse_windows(texts: Iterable[str]) -> tuple[Window, ...]:
    """Parse windows; each text may contain several, separated by commas.

    Raises:
        ValueError: A text is not a window; the message says what to write instead.
    """
    return tuple(_parse(part.strip()) for text in texts for part in text.split(","))


def seconds_until_open(windows: Sequence[Window], now: float) -> float:
    """Return the seconds until a window opens, or 0.0 if one is open or there are no windows.

    Args:
        windows: Windows in local time. A window within the hour that daylight saving time skips does not open that day.
        now: Current time, seconds since 1970.
    """
    opening_s = now
    # Minute by minute, because clock changes make the distance to a time of day differ on two days a year.
    while windows and not any(window.holds(_minute_of_day(opening_s)) for window in windows):
        opening_s = (opening_s // 60 + 1) * 60
    return opening_s - now


def _minute_of_day(time_s: float) -> int:
    local = time.localtime(time_s)
    return local.tm_hour * 60 + local.tm_min


def _parse(text: str) -> Window:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError("write times of day like 22:00-06:00; several with commas between them")
    hours, minutes = (int(match[1]), int(match[3])), (int(match[2]), int(match[4]))
    start, end = (60 * hour + minute for hour, minute in zip(hours, minutes, strict=True))
    if max(minutes) > 59 or start >= DAY_MIN or end > DAY_MIN:
        raise ValueError(f"{text} contains an invalid time of day; use 00:00 to 24:00")
    if start == end % DAY_MIN and end != DAY_MIN:
        raise ValueError(f"{text} is empty; leave the window out to work at any time")
    return Window(start, end or DAY_MIN)
