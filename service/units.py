"""Parse and format sizes, times and file names for people."""

from __future__ import annotations

import datetime
import os
import re

from edged.errors import UsageError

_FACTORS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*")
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def parse_bytes(value: int | str) -> int:
    """Parse a size such as 1048576, "1048576", "800MiB", "1.5 GiB" or "2GB".

    Args:
        value: Number of bytes, or a text with a number and a unit: KiB, MiB, GiB and TiB are powers of 1024, KB, MB, GB
            and TB of 1000.

    Returns:
        Bytes, at least 1.

    Raises:
        UsageError: The value is not a size, or less than one byte.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UsageError(f"size has value {value!r}; write bytes as a number or for example 800MiB")
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        factor = _FACTORS.get(match[2].upper()) if match else None
        if match is None or factor is None:
            raise UsageError(f"size has value {value!r:.40}; write bytes as a number or for example 800MiB")
        value = round(float(match[1]) * factor)
    if value < 1:
        raise UsageError(f"size has value {value}; it must be at least 1 byte")
    return value


def format_bytes(count: float) -> str:
    """Format a size for people: 1536 -> "1.5 KiB"."""
    for unit in _BINARY_UNITS[:-1]:
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_BINARY_UNITS[-1]}"


def format_seconds(seconds: float) -> str:
    """Format a duration for people: 0.25 -> "0.25 s", 75 -> "1 min 15 s"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def three_digits(value: float) -> str:
    """Return a number with three digits, never with an exponent where it is large."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def iso_time(epoch_s: float) -> str:
    """Format seconds since 1970 as ISO 8601 in UTC, to the millisecond."""
    moment = datetime.datetime.fromtimestamp(epoch_s, tz=datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(name: str) -> str:
    """Escape undecodable bytes and control characters of a file name, for logs, terminals and databases."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
