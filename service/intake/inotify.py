"""Change events of folders. An event is only a hint that something may have changed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver, ObservedWatch

log = logging.getLogger(__name__)

# Not modifications: a file being written makes thousands of them, and the wait for its end looks by itself.
_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileClosedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirMovedEvent,
    DirDeletedEvent,
]
# Changes made by other machines cause no event here.
_NETWORK_FILESYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    }
)


def is_network_folder(path: Path, mounts: str | None = None) -> bool:
    """Return whether `path` is on a filesystem that other machines can change without an event here.

    Args:
        path: Any path.
        mounts: Contents of /proc/self/mounts; None to read it.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return False
    resolved = path.resolve()
    kind, depth = "", -1
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Blanks and the like are written as octal escapes.
        mount = Path(fields[1].encode().decode("unicode_escape"))
        # The last of several mounts on one point is the visible one.
        if resolved.is_relative_to(mount) and len(mount.parts) >= depth:
            kind, depth = fields[2], len(mount.parts)
    return kind in _NETWORK_FILESYSTEMS


@dataclass
class _Watched:
    watch: ObservedWatch
    identity: tuple[int, int]  # device and inode


class Watches(FileSystemEventHandler):
    """Watches of folders through inotify, one per folder.

    The watch of a folder that is removed and created again receives no more events, and the observer reports no error.
    So `ensure` compares the watched folders with the existing ones.

    Args:
        on_event: Called in a thread of the observer, with the path of a file that was renamed into place, or None.
    """

    def __init__(self, on_event: Callable[[Path | None], None]) -> None:
        self._on_event = on_event
        self._observer = _start_observer()
        self._watched: dict[Path, _Watched] = {}
        self._lost: set[Path] = set()
        self.rebuilds = 0

    def ensure(self, folders: list[Path]) -> bool:
        """Watch exactly `folders`, as far as they exist.

        Returns:
            Whether all of them exist and are watched.

        Raises:
            OSError: inotify has no watches left.
        """
        for folder in self._watched.keys() - set(folders):
            self._drop(folder)
        self._lost &= set(folders)
        watched = [self._ensure(folder) for folder in folders]  # every one of them, also after a failure
        return all(watched)

    def close(self) -> None:
        """Stop all threads and wait for them."""
        self._observer.stop()
        self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Report an event to `on_event`."""
        renamed = isinstance(event, FileMovedEvent) and event.dest_path
        self._on_event(Path(str(event.dest_path)) if renamed else None)

    def _ensure(self, folder: Path) -> bool:
        try:
            status = folder.stat()
        except OSError:
            self._drop(folder)
            return False
        identity = (status.st_dev, status.st_ino)
        known = self._watched.get(folder)
        if known is not None and known.identity == identity and self._is_alive(known.watch):
            return True
        self._drop(folder)
        try:
            watch = self._observer.schedule(self, str(folder), event_filter=_EVENTS)
        except (FileNotFoundError, NotADirectoryError):  # gone since the stat
            return False
        self._watched[folder] = _Watched(watch, identity)
        if folder in self._lost:
            self._lost.remove(folder)
            self.rebuilds += 1
            log.warning("drop folder %s was replaced; watching it anew", folder)
        return True

    def _is_alive(self, watch: ObservedWatch) -> bool:
        return any(emitter.watch == watch and emitter.is_alive() for emitter in self._observer.emitters)

    def _drop(self, folder: Path) -> None:
        known = self._watched.pop(folder, None)
        if known is not None:
            self._lost.add(folder)
            with contextlib.suppress(KeyError, OSError):  # its thread has ended and taken it off the list
                self._observer.unschedule(known.watch)


def _start_observer() -> BaseObserver:
    from watchdog.observers.inotify import InotifyObserver

    # Full events: a rename from an unwatched folder is reported as a rename, not as a creation.
    observer = InotifyObserver(generate_full_events=True)
    observer.start()
    return observer
