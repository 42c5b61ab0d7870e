"""The number of file descriptors that this process may have open."""

from __future__ import annotations

import contextlib
import resource


def allow_descriptors(wanted: int) -> int:
    """Raise the soft limit on open files to `wanted`, as far as the hard limit allows.

    Returns:
        The soft limit that then holds; it is never lowered.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    least = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if least > soft:
        with contextlib.suppress(ValueError, OSError):  # the system's own limit is lower
            resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
            soft = least
    return soft
