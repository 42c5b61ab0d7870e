"""What keeps a generation busy, and whether it is."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import psutil

from service.inference.json_reader import LARGE_BYTES
from tests.support.pictures import vast_picture

# Joins a control group, then becomes the command that follows.
ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
_BUSY_S = 0.05  # of a core: more than it takes to look for work


def slow_request() -> bytes:
    """Return the body of a request that takes seconds to compute."""
    picture = base64.b64encode(vast_picture()).decode()
    data = [picture] * ((LARGE_BYTES - 1000) // (len(picture) + 4))  # the generation itself parses its JSON
    return json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}]}).encode()


def busy(pid: int) -> Callable[[], bool]:
    """Return a function that reports whether a process has used the CPU since this call."""
    process = psutil.Process(pid)
    before = process.cpu_times().user
    return lambda: process.cpu_times().user - before > _BUSY_S
