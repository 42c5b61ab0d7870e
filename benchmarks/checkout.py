"""The state of this repository that a benchmark measures."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Return the short name of the checked out commit; "" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
