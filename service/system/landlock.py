"""Landlock: rules by which the kernel lets this process reach nothing but some places. See landlock(7).

Three system calls, for which libc has no wrappers. The packages on PyPI are alpha versions.
"""

from __future__ import annotations

import ctypes
import enum
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1  # flag of landlock_create_ruleset
_PATH_BENEATH = 1  # type of a rule
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract UNIX sockets, signals
NETWORK_ABI, SCOPES_ABI = 4, 6  # that brought them


class Access(enum.IntFlag):
    """What a rule allows, by the bits of the kernel."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # from ABI 2 on; before, nothing can be moved from one folder to another
    TRUNCATE = 1 << 14  # from ABI 3 on
    IOCTL_DEV = 1 << 15  # from ABI 5 on


READ = Access.READ_FILE | Access.READ_DIR
LIST = Access.READ_DIR
RUN = READ | Access.EXECUTE
DEVICE = READ | Access.WRITE_FILE | Access.IOCTL_DEV
# Regular files and folders only: no links, pipes, sockets or devices.
WRITE = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.MAKE_REG
    | Access.MAKE_DIR
    | Access.REMOVE_FILE
    | Access.REMOVE_DIR
    | Access.REFER
)
_OF_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
_SINCE = ((Access.REFER, 2), (Access.TRUNCATE, 3), (Access.IOCTL_DEV, 5))


@dataclass(frozen=True)
class Rule:
    """What is allowed at a path, and below it if it is a folder.

    Attributes:
        path: Path of a file or folder; nothing is allowed where there is none.
        access: What is allowed.
        pinned: Whether to keep it open. The kernel may forget a file in /proc and make another one of that name, and
            the rule would not apply to that.
    """

    path: Path
    access: Access
    pinned: bool = False


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """Return the version of Landlock in this kernel; 0 if it has none, or if it is turned off."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    except OSError:
        return 0


def restrict(rules: Iterable[Rule], version: int) -> Sequence[int]:
    """Allow this thread, and threads and processes that it starts, only what rules say.

    This holds for files that are opened from now on. From ABI 4 on, TCP is denied. From ABI 6 on, signals and abstract
    UNIX sockets reach only processes that are restricted by the same call. In any version, no other process can be
    traced, and nothing can be mounted. It cannot be undone.

    Args:
        rules: What is allowed.
        version: Version of Landlock to use; at most that of `abi`.

    Returns:
        Descriptors of what is pinned.

    Raises:
        OSError: The kernel refuses.
    """
    handled = Access(sum(right for right in Access)) & ~Access(sum(right for right, since in _SINCE if version < since))
    attributes = _RulesetAttr(handled, _TCP if version >= NETWORK_ABI else 0, _SCOPES if version >= SCOPES_ABI else 0)
    # An older kernel takes fields that it does not know if they are zero.
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    pinned: list[int] = []
    try:
        for rule in rules:
            _add(ruleset, rule, handled, pinned)
        _call(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return pinned


def _add(ruleset: int, rule: Rule, handled: Access, pinned: list[int]) -> None:
    try:
        place = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # there is none, or this process may not go there at all
        return
    try:
        access = rule.access & handled
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _OF_FILES
        if access:
            beneath = _PathBeneath(access, place)
            _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(beneath), ctypes.c_uint32(0))
    finally:
        if rule.pinned:
            pinned.append(place)
        else:
            os.close(place)


def _call(number: int, *arguments: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    result: int = library.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
