"""Detection of finished files. Pure: the caller passes the time and the results of stat(2)."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fingerprint:
    """Properties of a file that change when it is written to, replaced, or given other permissions.

    Attributes:
        size: Size in bytes.
        mtime_ns: Last change of the contents, nanoseconds since 1970.
        ctime_ns: Last change of contents or metadata, nanoseconds since 1970.
        inode: Identity on its filesystem.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        """Create a fingerprint from the result of stat(2)."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def __str__(self) -> str:
        """Return the fingerprint as the journal keeps it."""
        return f"{self.size}-{self.mtime_ns}-{self.ctime_ns}-{self.inode}"


@dataclass
class _Seen:
    fingerprint: Fingerprint
    first: float
    unchanged_since: float
    look_again: float = 0.0


class StabilityTracker:
    """A record of how long each file has been unchanged.

    The timestamps of a file are never compared with the clock: they may be copied from elsewhere, or be in the future.

    Args:
        settle_s: Seconds without a change after which a file is finished, unless it is seen to be unfinished.
        settle_max_s: Seconds without a change after which an unfinished file is given up.
    """

    def __init__(self, settle_s: float, settle_max_s: float = 0.0) -> None:
        self.settle_s = settle_s
        self.settle_max_s = settle_max_s
        self._seen: dict[Path, _Seen] = {}

    def observe(self, path: Path, fingerprint: Fingerprint, now: float) -> bool:
        """Record the fingerprint of a file.

        Args:
            path: Path of the file.
            fingerprint: Current fingerprint of the file.
            now: Monotonic time in seconds, never less than before.

        Returns:
            Whether the file has been unchanged for `settle_s`.
        """
        seen = self._seen.get(path)
        if seen is None or seen.fingerprint.inode != fingerprint.inode:  # another file has taken the name
            seen = self._seen[path] = _Seen(fingerprint, now, now)
        elif seen.fingerprint != fingerprint:
            seen.fingerprint, seen.unchanged_since, seen.look_again = fingerprint, now, 0.0
        return now - seen.unchanged_since >= self.settle_s

    def hold(self, path: Path, now: float) -> bool:
        """Wait on for an observed file that does not change and is seen to be unfinished.

        Returns:
            Whether to wait; False once it has been unchanged for `settle_max_s`.
        """
        seen = self._seen[path]
        seen.look_again = min(now + self.settle_s, seen.unchanged_since + self.settle_max_s)
        return now - seen.unchanged_since < self.settle_max_s

    def first_seen(self, path: Path) -> float | None:
        """Return when a file was first observed, by the caller's clock; None if it was not."""
        seen = self._seen.get(path)
        return None if seen is None else seen.first

    def forget(self, path: Path) -> None:
        """Forget a file, because it is gone or turned out not to be finished."""
        self._seen.pop(path, None)

    def keep_only(self, paths: Collection[Path]) -> None:
        """Forget all files but these."""
        for path in self._seen.keys() - set(paths):
            del self._seen[path]

    def next_due(self, paths: Collection[Path]) -> float | None:
        """Return when the first of `paths` is to be looked at again, by the caller's clock; None if none is tracked."""
        tracked = [self._seen[path] for path in paths if path in self._seen]
        return min((max(seen.unchanged_since + self.settle_s, seen.look_again) for seen in tracked), default=None)
