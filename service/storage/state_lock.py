"""The lock that keeps a second daemon out of a state folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from edged.errors import StateError, UnavailableError


def lock_state(path: Path) -> IO[bytes]:
    """Lock the state folder until the returned file is closed; the kernel releases the lock even after kill -9.

    Args:
        path: Lock file in the state folder, created if it is missing.

    Raises:
        UnavailableError: Another daemon holds the lock.
        StateError: The file cannot be written.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}; make state_dir writable") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UnavailableError(
            f"another edged daemon uses state_dir {path.parent}; stop it or choose another state_dir"
        ) from error
    return file
