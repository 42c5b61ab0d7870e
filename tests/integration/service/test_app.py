"""What `edged run` costs before it does anything."""

from __future__ import annotations

import os
import subprocess
import sys


def test_the_supervisor_stays_small(tmp_path):
    """Everything it imports, without torch: near 40 MiB.

    Of bytecode that is there already, as pip leaves it on a device: compiling takes another MB.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    code = """
import sys, service.app
assert not {"torch", "torchvision", "numpy", "PIL", "pydantic"} & set(sys.modules), sorted(sys.modules)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
    for _ in range(2):
        found = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
        )
    assert int(found.stdout) < 42 * 1024
