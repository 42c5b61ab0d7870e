"""Privileges that this process gives up for good. See capabilities(7)."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Collection

_PR_SET_NO_NEW_PRIVS = 38
_VERSION_3 = 0x20080522
_SETS = 2  # of 32 capabilities each
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # files of other users


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def gain_no_privileges() -> None:
    """Let no program that this process starts give it more privileges, such as by a set-user-ID bit.

    Raises:
        OSError: The kernel is older than 3.5.
    """
    library = ctypes.CDLL(None, use_errno=True)
    _check(library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def drop_capabilities(kept: Collection[int]) -> None:
    """Give up all capabilities except some. Without privileges there are none.

    Args:
        kept: Numbers of those to keep where this process has them; all below 32.

    Raises:
        OSError: The kernel refuses.
    """
    library = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * _SETS)()
    _check(library.capget(ctypes.byref(header), sets), "capget")
    mask = sum(1 << number for number in kept)
    if not sets[0].permitted & ~mask and not sets[1].permitted and not any(found.inheritable for found in sets):
        return  # capset may be refused to users
    for index, found in enumerate(sets):
        found.effective &= mask if index == 0 else 0
        found.permitted &= mask if index == 0 else 0
        found.inheritable = 0
    _check(library.capset(ctypes.byref(header), sets), "capset")


def dump_no_core() -> None:
    """Write no core dump, which would hold everything that was read, and might fill the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _check(result: int, call: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
