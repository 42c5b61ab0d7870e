"""A machine as a folder, with what checks look at; nothing of the real one is asked."""

import os
from pathlib import Path

from service.doctor.check import Machine

MEMINFO = "MemTotal:       {total} kB\nMemFree:  1 kB\nMemAvailable:   {available} kB\n"
NOW = 1_780_000_000.0  # May 2026


def write(root, files):
    for name, text in files.items():
        path = Path(root, name.lstrip("/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def machine(root, files=(), *, uid=None, commands=None, **fields):
    """Return a machine with these files, and the output of commands by their first two words."""
    write(root, dict(files))
    answers = commands or {}
    return Machine(
        **{
            "root": Path(root),
            "uid": os.geteuid() if uid is None else uid,
            "groups": frozenset(),
            "run": lambda command: answers.get(" ".join(command[:2])),
            "now": lambda: NOW,
            "synchronized": lambda: True,
            **fields,
        }
    )


def levels(checks):
    """Return level and detail by name; each problem must name a remedy."""
    checks = list(checks)
    assert all(map(mended, checks)), checks
    return {check.name: (check.level, check.detail) for check in checks}


def only(checks):
    """Return the only finding."""
    (check,) = checks
    assert mended(check), check
    return check


def mended(check):
    """Return whether a problem names a command in backticks or a config key to set."""
    return check.level == "ok" or "`" in check.fix or " set " in f" {check.fix}" or check.fix.startswith("nothing:")
