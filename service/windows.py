"""Times of day in which the device may work, written like `22:00-06:00, 12:30-13:30`. Pure; the clock is given."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DAY_MIN = 24 * 60
_WINDOW = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")


@dataclass(frozen=True)
class Window:
    """From one time of day to another, over midnight if that is earlier.

    Attributes:
        start: Minutes after midnight, 0 to 1439; the first one that belongs to it.
        end: Likewise, 1 to 1440; the first one that does not.
    """

    start: int
    end: int

    def holds(self, minute: int) -> bool:
        """Whether it is open in this minute of the day, 0 to 1439."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.start, self.end))


def parse_windows(texts: Iterable[str]) -> tuple[Window, ...]:
    """Read windows; each text may hold several, with commas between them.

    Raises:
        ValueError: It is none; says what to write instead.
    """
    return tuple(_parse(part.strip()) for text in texts for part in text.split(","))


def seconds_until_open(windows: Sequence[Window], now: float) -> float:
    """How long until one of them opens: 0.0 if one is open, or if there are none.

    Args:
        windows: In local time.
        now: Seconds since 1970.
    """
    local = time.localtime(now)
    minute = local.tm_hour * 60 + local.tm_min
    if not windows or any(window.holds(minute) for window in windows):
        return 0.0
    openings = []
    for window in windows:
        day = local.tm_mday + (window.start <= minute)
        # The last value has the C library find out whether it is summer time then.
        opening = (local.tm_year, local.tm_mon, day, window.start // 60, window.start % 60, 0, 0, 0, -1)
        openings.append(time.mktime(opening) - now)
    return max(min(openings), 1.0)


def _parse(text: str) -> Window:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError("write times of day like 22:00-06:00; several with commas between them")
    hours, minutes = (int(match[1]), int(match[3])), (int(match[2]), int(match[4]))
    start, end = (60 * hour + minute for hour, minute in zip(hours, minutes, strict=True))
    if max(minutes) > 59 or start >= DAY_MIN or end > DAY_MIN:
        raise ValueError(f"{text} names a time that no day has; 00:00 to 24:00 are there")
    if start == end % DAY_MIN and end != DAY_MIN:
        raise ValueError(f"{text} is empty; leave the window out to work at any time")
    return Window(start, end or DAY_MIN)
