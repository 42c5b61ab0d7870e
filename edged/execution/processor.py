"""The processor's instructions for products of 8-bit integers."""

from __future__ import annotations

import platform
from pathlib import Path

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
_X86 = ("x86_64", "amd64", "i386", "i686")


def processor_saturates(root: Path = Path("/"), machine: str | None = None) -> bool:
    """Return whether this processor adds products of 8-bit codes in 16 bits; True where an x86 does not say.

    Args:
        root: Parent folder of /proc.
        machine: Architecture as `platform.machine` names it; None for this one.
    """
    if (machine or platform.machine()).lower() not in _X86:
        return False
    return not VNNI & processor_flags(root)


def processor_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return the instruction sets of an x86 processor, as /proc/cpuinfo names them; empty if it cannot be read."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    named = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(named, ()))
