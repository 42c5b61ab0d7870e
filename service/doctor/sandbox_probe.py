"""`python -m service.doctor.sandbox_probe FOLDER`: enter the sandbox of a worker and try what it has to keep out.

The probe is a process of its own, because it cannot leave the sandbox. It prints what it finds as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from service.worker.job import Job
from service.worker.sandbox import FILES, NETWORK, PRIVILEGES, PROCESSES, enter


def probe(folder: Path) -> dict[str, str | None]:
    """Return why each part of the sandbox does not hold, or None if it does.

    Args:
        folder: An empty folder.

    Raises:
        SandboxError: There can be no sandbox at all.
    """
    outside, inside = folder / "outside", folder / "inside"
    outside.touch()
    job = Job(inside / "file", inside / "out", inside / "images", inside / "cache")
    parts = {part.name: part.lacking for part in enter(job)}
    parent = os.getppid()
    attempts: dict[str, tuple[str, Callable[[], object]]] = {
        FILES: ("a file outside of the worker's folders can be read", outside.read_bytes),
        NETWORK: ("a socket can be opened", lambda: socket.socket().close()),
        PROCESSES: ("another process can be signaled", lambda: os.kill(parent, 0)),
        PRIVILEGES: ("privileges can be gained", _require_no_new_privileges),
    }
    for part, (what, attempt) in attempts.items():
        if parts[part] is None and _works(attempt):
            parts[part] = what
    return parts


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _require_no_new_privileges() -> None:
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        raise PermissionError


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]))) + "\n")
