"""Images of live requests on the disk, limited in number, size and age; the oldest are removed first. No numpy.

    <state_dir>/capture/<model>/<milliseconds since 1970>-<random>.<suffix>

Only the user that the daemon runs as can read them: folder 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.atomic import make_folder

_NAME = re.compile(r"(\d{13,})-[0-9a-f]{8}\.[a-z]+")


@dataclass(frozen=True)
class Captured:
    """A stored image.

    Attributes:
        path: Path of the file.
        bytes: Size of the file in bytes.
        at: Time of its storage, seconds since 1970.
    """

    path: Path
    bytes: int
    at: float


@dataclass(frozen=True)
class Ring:
    """The stored images of one model.

    Attributes:
        folder: Folder of the images, created with the first image.
        max_images: Largest number of images.
        max_bytes: Largest total size of the images in bytes.
        max_age_s: Greatest age of an image in seconds.
    """

    folder: Path
    max_images: int
    max_bytes: int
    max_age_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON types."""
        return {**vars(self), "folder": str(self.folder)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ring:
        """Create a ring from the result of `to_dict`."""
        return cls(**{**data, "folder": Path(data["folder"])})

    def entries(self) -> list[Captured]:
        """Return all images, the oldest first."""
        return sorted(self._entries(), key=lambda entry: (entry.at, entry.path.name))

    def add(self, data: bytes, suffix: str, now: float) -> bool:
        """Store an image and remove images beyond the limits; return False if the image alone is too large.

        Args:
            data: Encoded image.
            suffix: File suffix of the format, with the dot.
            now: Current time, seconds since 1970.

        Raises:
            OSError: The image cannot be written, or an old one cannot be removed.
        """
        if len(data) > self.max_bytes:
            return False
        make_folder(self.folder)
        self.folder.chmod(0o700)
        path = self.folder / f"{int(now * 1000):013}-{secrets.token_hex(4)}{suffix}"
        half = path.with_name(f".{path.name}.tmp")
        try:
            with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            half.rename(path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise
        self.trim(now)
        return True

    def trim(self, now: float) -> int:
        """Remove images beyond the limits; return their number.

        Raises:
            OSError: An image cannot be removed.
        """
        entries = self.entries()
        count, size, gone = len(entries), sum(entry.bytes for entry in entries), 0
        for entry in entries:
            if count <= self.max_images and size <= self.max_bytes and now - entry.at <= self.max_age_s:
                break
            entry.path.unlink(missing_ok=True)
            count, size, gone = count - 1, size - entry.bytes, gone + 1
        return gone

    def purge(self) -> list[Captured]:
        """Remove all images and partly written files; return the removed images.

        Raises:
            OSError: A file cannot be removed.
        """
        entries = self.entries()
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another image may have been stored meanwhile
                self.folder.rmdir()
        return entries

    def _entries(self) -> Iterator[Captured]:
        try:
            listed = list(os.scandir(self.folder))
        except FileNotFoundError:
            return
        for entry in listed:
            match = _NAME.fullmatch(entry.name)
            with contextlib.suppress(FileNotFoundError):  # removed by the other process that trims this folder
                if match is not None:
                    yield Captured(Path(entry.path), entry.stat().st_size, int(match[1]) / 1000)
