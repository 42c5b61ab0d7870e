"""Files that edged itself writes into the drop folder before it renames them, and those that a kill left behind."""

from __future__ import annotations

import logging
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from service.intake.stability import Fingerprint, StabilityTracker

log = logging.getLogger(__name__)

_NAME = re.compile(r"\.edged-[0-9a-f]{16}\.tmp")
_ABANDONED_S = 3600.0  # without a change: an upload that stands still has ended long before


def temporary_in(folder: Path) -> Path:
    """Return a new path in a folder of the drop folder, hidden, so that the daemon takes nothing that is unfinished."""
    return folder / f".edged-{secrets.token_hex(8)}.tmp"


def temporary_of(path: Path) -> Fingerprint | None:
    """Return the fingerprint of a file that `temporary_in` named; None of anything else, and if it is gone."""
    if not _NAME.fullmatch(path.name):
        return None
    try:
        status = path.lstat()
    except OSError:
        return None
    return Fingerprint.of(status) if stat.S_ISREG(status.st_mode) else None


class Temporaries:
    """Removes what was being written when the daemon or `edged submit` was killed.

    A file counts as abandoned once it has not changed for an hour in which it was observed. Its times are not compared
    with the clock, which may be set while another process writes it.

    Args:
        abandoned_s: Seconds without a change after which a file is removed.
    """

    def __init__(self, abandoned_s: float = _ABANDONED_S) -> None:
        self._tracker = StabilityTracker(abandoned_s)

    def remove_abandoned(self, found: Mapping[Path, Fingerprint], now: float) -> None:
        """Remove the abandoned ones of the files that a scan has found.

        Args:
            found: Fingerprints of the files, see `temporary_of`.
            now: Monotonic time in seconds.
        """
        self._tracker.keep_only(found)
        for path, fingerprint in found.items():
            if not self._tracker.observe(path, fingerprint, now):
                continue
            self._tracker.forget(path)  # where it cannot be removed, it is tried again as late
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("cannot remove %s, left behind by an upload that was cut off: %s", path, error.strerror)
            else:
                log.info("%s is removed: it was left behind by an upload that was cut off", path)
