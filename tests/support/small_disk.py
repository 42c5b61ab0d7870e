"""Small filesystems of their own, which a test can fill, or make read-only, without touching anything else."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = 4096  # what a tmpfs gives at a time


@functools.cache
def missing() -> str | None:
    """Return why no filesystem can be mounted here, or None if one can."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "edged", folder], capture_output=True, text=True)
        if mounted.returncode:
            return f"no filesystem can be mounted here: {mounted.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return None


class SmallDisk:
    """A mounted tmpfs.

    Attributes:
        path: Where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast, self._crowd = path / ".ballast", path / ".crowd"

    def fill(self, leave: int = 0) -> None:
        """Use up all space but `leave` bytes."""
        status = os.statvfs(self.path)
        most = status.f_bfree * status.f_frsize - leave
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while most > 0:
                most -= file.write(bytes(min(most, 1 << 20)))

    def use_up_inodes(self, leave: int = 0) -> None:
        """Use up all inodes but `leave`."""
        self._crowd.mkdir(exist_ok=True)
        for number in range(os.statvfs(self.path).f_ffree - leave):
            (self._crowd / str(number)).touch()

    def clear(self) -> None:
        """Free what `fill` and `use_up_inodes` have used up."""
        self._ballast.unlink(missing_ok=True)
        shutil.rmtree(self._crowd, ignore_errors=True)

    def remount(self, option: str) -> None:
        """Mount it again as "ro" or "rw"; no file may be open for writing."""
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "1m", inodes: int = 2000) -> Iterator[SmallDisk]:
    """Mount a small filesystem at a new folder during the block."""
    folder.mkdir()
    limits = f"size={size},nr_inodes={inodes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", limits, "edged", folder], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
