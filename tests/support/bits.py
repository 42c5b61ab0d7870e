"""Bits of files, flipped as a bad disk or a bad transfer flips them."""

from __future__ import annotations

from pathlib import Path


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
