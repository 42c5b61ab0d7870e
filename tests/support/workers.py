"""What the parallel workers of one test session share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker to ask for it fills; the others wait for that.

    Args:
        factory: Names the temporary folder of the session.
        name: Names the folder in it.
        make: Fills a folder that exists and is empty.
    """
    session = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder = session / name
    with (session / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (session / f"{name}.done").exists():
            folder.mkdir()
            make(folder)
            (session / f"{name}.done").touch()
    return folder
