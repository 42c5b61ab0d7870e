"""Record what processes of edged do while they handle files, in the file that EDGED_AUDIT names.

Python imports a module of this name at its start, if it is in PYTHONPATH. An audit hook cannot be removed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_AUDIT = os.environ.get("EDGED_AUDIT")
_EVENTS = ("subprocess.Popen", "pickle.find_class")


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS:
        os.write(_descriptor, f"{event} {arguments!r}\n".encode(errors="replace"))


if _AUDIT is not None:
    _descriptor = os.open(_AUDIT, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    sys.addaudithook(_see)
