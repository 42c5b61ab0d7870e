"""Code in a process of its own, for what a process cannot undo."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

ATTEMPT = '''
import errno, json, os, sys
from pathlib import Path

def attempt(function, *arguments):
    """Return "" if a call works, or the name of its error."""
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""
'''


def in_child(code: str, *arguments: object) -> Any:
    """Run code after ATTEMPT with some arguments, and return what it prints as JSON."""
    command = [sys.executable, "-c", ATTEMPT + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
