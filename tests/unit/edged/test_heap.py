"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys


def test_freed_memory_is_returned() -> None:
    code = """
from edged.heap import trim_heap
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
kept = [bytearray(60_000) for _ in range(1000)]
last = bytearray(60_000)  # above the others, so that freeing them alone returns nothing
kept.clear()
before = resident()
trim_heap()
assert before - resident() > 30_000_000, (before, resident())
"""
    subprocess.run([sys.executable, "-c", code], check=True)
