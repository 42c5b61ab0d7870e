"""What a disk may hold after a power cut: the writes of one update, replayed without those that were not synced.

POSIX promises of a write only that it is on the disk once its file was synced, and of a name once its folder was. So at
each moment, the disk may hold what was synced, what was written, or names of the one with data of the other.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.syscall_faults import CALLS, Operation

TRACED = (*CALLS, "openat")
SYNCS = ("fsync", "fdatasync")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")
_NUMBERS = re.compile(r", (\d+)")


class Kept(enum.Enum):
    """Which of the names and of the data that were not synced a power cut leaves: all of them or none."""

    NOTHING = (False, False)
    NAMES = (True, False)
    DATA = (False, True)


@dataclass
class File:
    """Contents of a file: as written, and as synced."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass
class Folder:
    """Entries of a folder: as they are, and as synced. A link is its target."""

    entries: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)


Node = File | Folder | str


class Disk:
    """A folder whose changes are replayed.

    Args:
        root: Folder as it is before the first change; all of it counts as synced.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tree = _read(root)
        self._offsets: dict[str, int] = {}

    def add(self, path: Path, source: Path) -> None:
        """Add a file that somebody else wrote and synced."""
        data = source.read_bytes()
        folder, name = self._parent(str(path))
        folder.entries[name] = folder.synced[name] = File(bytearray(data), data)

    def replay(self, operation: Operation) -> bool:
        """Apply a call, logged with its data; return whether it changes this folder."""
        if operation.error is not None:
            return False
        call, arguments = operation.call, operation.arguments
        folders = [_text(each) for each in _DESCRIPTOR.findall(arguments)]
        strings = [_bytes(each) for each in _STRING.findall(arguments)]
        names = [each.decode(errors="replace") for each in strings]
        paths = [str(Path(folders[0] if folders else "/", name)) for name in names]
        if call in ("symlink", "symlinkat"):
            paths = paths[1:]
        touched = paths if call not in _BY_DESCRIPTOR else folders
        if not touched or not any(each.startswith(f"{self._root}/") or each == str(self._root) for each in touched):
            return False
        if call == "openat" and not ("O_CREAT" in arguments or "O_TRUNC" in arguments or "O_WRONLY" in arguments):
            return False
        numbers = [int(each) for each in _NUMBERS.findall(_STRING.sub("", arguments))]
        self._apply(call, touched, strings, numbers, arguments)
        return True

    def _apply(self, call: str, paths: list[str], strings: list[bytes], numbers: list[int], arguments: str) -> None:
        if call in SYNCS:
            node = self._node(paths[0])
            if isinstance(node, File):
                node.synced = bytes(node.data)
            elif isinstance(node, Folder):
                node.synced = dict(node.entries)
        elif call in ("write", "pwrite64"):
            file = self._file(paths[0])
            offset = numbers[-1] if call == "pwrite64" else self._offsets.get(paths[0], 0)
            self._offsets[paths[0]] = offset + len(strings[0])
            file.data.extend(bytes(max(0, offset - len(file.data))))
            file.data[offset : offset + len(strings[0])] = strings[0]
        elif call == "ftruncate":
            file = self._file(paths[0])
            del file.data[numbers[0] :]
            file.data.extend(bytes(numbers[0] - len(file.data)))
        else:
            self._apply_name(call, paths, strings, arguments)

    def _apply_name(self, call: str, paths: list[str], strings: list[bytes], arguments: str) -> None:
        folder, name = self._parent(paths[-1])
        if call == "openat":
            self._offsets[paths[0]] = 0
            file = folder.entries.setdefault(name, File())
            if "O_TRUNC" in arguments and isinstance(file, File):
                file.data.clear()
        elif call.startswith("rename"):
            source, old = self._parent(paths[0])
            folder.entries[name] = source.entries.pop(old)
        elif call.startswith("link"):
            source, old = self._parent(paths[0])
            folder.entries[name] = source.entries[old]
        elif call.startswith("symlink"):
            folder.entries[name] = strings[0].decode()
        elif call.startswith("mkdir"):
            folder.entries[name] = Folder()
        elif call in ("unlink", "unlinkat", "rmdir"):
            folder.entries.pop(name, None)  # a socket is not replayed
        else:
            raise NotImplementedError(f"{call} is not replayed")

    def write(self, target: Path, kept: Kept | None) -> None:
        """Write what a power cut would leave to a new folder; None for what the running system sees."""
        names, data = (True, True) if kept is None else kept.value
        _write(self._tree, target, names, data)

    def _parent(self, path: str) -> tuple[Folder, str]:
        folder = self._node(str(Path(path).parent))
        if not isinstance(folder, Folder):
            raise NotADirectoryError(path)
        return folder, Path(path).name

    def _file(self, path: str) -> File:
        node = self._node(path)
        if not isinstance(node, File):
            raise IsADirectoryError(path)
        return node

    def _node(self, path: str) -> Node:
        node: Node = self._tree
        for name in Path(path).relative_to(self._root).parts:
            if not isinstance(node, Folder):
                raise NotADirectoryError(path)
            node = node.entries[name]
        return node


_BY_DESCRIPTOR = (*SYNCS, "write", "pwrite64", "ftruncate")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return _bytes(text).decode(errors="replace")


def _read(path: Path) -> Folder:
    folder = Folder()
    for entry in path.iterdir():
        if entry.is_symlink():
            folder.entries[entry.name] = str(entry.readlink())
        elif entry.is_dir():
            folder.entries[entry.name] = _read(entry)
        elif entry.is_file():
            data = entry.read_bytes()
            folder.entries[entry.name] = File(bytearray(data), data)
    folder.synced = dict(folder.entries)
    return folder


def _write(folder: Folder, target: Path, names: bool, data: bool) -> None:
    target.mkdir()
    for name, node in (folder.entries if names else folder.synced).items():
        if isinstance(node, str):
            (target / name).symlink_to(node)
        elif isinstance(node, Folder):
            _write(node, target / name, names, data)
        else:
            (target / name).write_bytes(node.data if data else node.synced)
