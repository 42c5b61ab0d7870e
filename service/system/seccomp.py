"""Seccomp: system calls that the kernel refuses to this process. See seccomp(2).

libseccomp writes the filter. It is part of every system with systemd. Its own bindings for Python are on no package
index, and those on PyPI have had no release since 2021, so the few functions that are needed are called here.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

_LIBRARY = "libseccomp.so.2"
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NOT_EQUAL, _MASKED_EQUAL = 1, 7
_ALL_THREADS = 4  # attribute
_UNKNOWN = -1
_CALL = {"x86_64": 317, "aarch64": 277}  # seccomp(2), for which libc has no wrapper
_ACTION_AVAILABLE = 2  # operation
# System calls that older releases of libseccomp have no names for. From 424 on, numbers are the same everywhere.
_NUMBERS = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435,
    "openat2": 437, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "process_mrelease": 448, "fchmodat2": 452, "lsm_set_self_attr": 460, "setxattrat": 463, "removexattrat": 466,
    "open_tree_attr": 467, "file_setattr": 469,
}  # fmt: skip


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Denied:
    """A system call that is refused.

    Attributes:
        name: Name of the call.
        argument: Index of the argument that it depends on; None if it is always refused.
        mask: Bits of the argument that are compared.
        value: The call is refused if these bits have this value, or with `unless`, if they do not.
        unless: See `value`; the mask must be that of all bits.
        code: Error number that the caller gets.
    """

    name: str
    argument: int | None = None
    mask: int = 0xFFFF_FFFF_FFFF_FFFF
    value: int = 0
    unless: bool = False
    code: int = errno.EPERM

    def comparison(self) -> _Comparison:
        """Return the condition in the form of libseccomp."""
        if self.unless:
            return _Comparison(self.argument, _NOT_EQUAL, self.value, 0)
        return _Comparison(self.argument, _MASKED_EQUAL, self.mask, self.value)


def why_not() -> str | None:
    """Return why no filter can be set on this machine; None if one can."""
    try:
        _load()
    except OSError:
        return f"{_LIBRARY} is not installed"
    number = _CALL.get(os.uname().machine)
    if number is None:
        return f"edged knows no seccomp of {os.uname().machine}"
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(number, _ACTION_AVAILABLE, 0, ctypes.byref(ctypes.c_uint32(_ERRNO))) != 0:
        return f"seccomp(2): {os.strerror(ctypes.get_errno())}"
    return None


def deny(calls: Iterable[Denied]) -> None:
    """Refuse system calls to all threads of this process, and to processes that they start. It cannot be undone.

    Calls of another architecture, such as those of 32 bits, end the process.

    Raises:
        OSError: There is no libseccomp, or the kernel refuses.
    """
    library = _load()
    filter_ = library.seccomp_init(_ALLOW)
    if not filter_:
        raise OSError(errno.ENOMEM, "seccomp: no filter can be made")
    try:
        _check(library.seccomp_attr_set(ctypes.c_void_p(filter_), _ALL_THREADS, 1))
        for call in calls:
            number = library.seccomp_syscall_resolve_name(call.name.encode())
            if number == _UNKNOWN:
                number = _NUMBERS.get(call.name, _UNKNOWN)
            if number < 0:  # this architecture has no such call
                continue
            action = ctypes.c_uint32(_ERRNO | call.code)
            count, comparisons = 0, None
            if call.argument is not None:
                count, comparisons = 1, (_Comparison * 1)(call.comparison())
            _check(
                library.seccomp_rule_add_array(
                    ctypes.c_void_p(filter_), action, number, ctypes.c_uint(count), comparisons
                )
            )
        _check(library.seccomp_load(ctypes.c_void_p(filter_)))
    finally:
        library.seccomp_release(ctypes.c_void_p(filter_))


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    library.seccomp_init.argtypes, library.seccomp_init.restype = (ctypes.c_uint32,), ctypes.c_void_p
    return library


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, f"seccomp: {os.strerror(-result)}")
