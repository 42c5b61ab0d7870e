"""The system calls that a worker has no use for, and that would lead out of its sandbox.

A list of what is refused, not of what is allowed: drivers of GPUs and engines make calls that nobody has listed, and
differ by release. A refused call fails with an error, which libraries take for a machine that lacks something.
"""

from __future__ import annotations

import errno

from service.system.seccomp import Denied

_AF_UNIX = 1
_CLONE_THREAD = 0x0001_0000
_NEW_NAMESPACES = (0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x80)
_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # type into the terminal
_LOW = 0xFFFF_FFFF

_SOCKETS = (
    "connect", "bind", "listen", "accept", "accept4", "sendmsg", "sendmmsg",
)  # fmt: skip
_MESSAGES = (
    "shmget", "shmat", "shmctl", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semtimedop", "semctl",
    "mq_open", "mq_unlink", "add_key", "request_key", "keyctl",
)  # fmt: skip
_PROCESSES = (
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp",
    "perf_event_open", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
    "migrate_pages", "move_pages",
)  # fmt: skip
# Also what makes something else than a regular file or a folder.
_FILES = (
    "mount", "umount2", "pivot_root", "chroot", "open_tree", "open_tree_attr", "move_mount", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr", "swapon", "swapoff", "quotactl", "quotactl_fd", "name_to_handle_at",
    "open_by_handle_at", "fanotify_init", "inotify_init", "inotify_init1", "symlink", "symlinkat", "link", "linkat",
    "mknod", "mknodat", "truncate", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown",
    "fchownat", "utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat",
    "removexattr", "lremovexattr", "fremovexattr", "removexattrat", "file_setattr",
)  # fmt: skip
_KERNEL = (
    "bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "init_module", "finit_module",
    "delete_module", "kexec_load", "kexec_file_load", "reboot", "syslog", "acct", "settimeofday", "clock_settime",
    "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "iopl", "ioperm", "modify_ldt", "personality",
    "vhangup", "uselib", "lookup_dcookie", "setns", "unshare", "lsm_set_self_attr",
)  # fmt: skip
_PROGRAMS = (
    "fork", "vfork", "execve", "execveat",
)  # fmt: skip


def denied_calls(pid: int, *, signals: bool, programs: bool, unix_sockets: bool) -> list[Denied]:
    """Return what a worker is refused.

    Args:
        pid: Process ID of the worker.
        signals: Whether to refuse signals to other processes.
        programs: Whether the worker may start programs.
        unix_sockets: Whether it may have UNIX sockets, which then reach nobody.
    """
    names = [*_SOCKETS, *_MESSAGES, *_PROCESSES, *_FILES, *_KERNEL, *([] if programs else _PROGRAMS)]
    return [
        *map(Denied, names),
        *_sockets(unix_sockets),
        *(_signals(pid) if signals else ()),
        *_priorities(),
        *_new_processes(programs),
        *(Denied("ioctl", 1, _LOW, request) for request in (_TIOCSTI, _TIOCLINUX)),
        # Older versions of Landlock let a file be emptied that may be read. The flags are in no register with openat2.
        *(Denied(name, flags, _O_ACCMODE | _O_TRUNC, _O_TRUNC) for name, flags in (("open", 1), ("openat", 2))),
        Denied("openat2", code=errno.ENOSYS),
    ]


def _sockets(unix: bool) -> list[Denied]:
    if unix:  # made, and connected to nobody
        return [Denied("socket", 0, value=_AF_UNIX, unless=True), Denied("sendto", 4, value=0, unless=True)]
    return [Denied("socket"), Denied("socketpair"), Denied("sendto")]


def _signals(pid: int) -> list[Denied]:
    return [*(Denied(name, 0, value=pid, unless=True) for name in ("kill", "tgkill")), Denied("tkill")]


def _priorities() -> list[Denied]:
    """Return calls that change another process than the calling thread, which 0 stands for."""
    of = {"prlimit64": 0, "sched_setscheduler": 0, "sched_setparam": 0, "sched_setattr": 0, "sched_setaffinity": 0}
    of |= {"setpriority": 1, "ioprio_set": 1}
    return [Denied(name, index, value=0, unless=True) for name, index in of.items()]


def _new_processes(programs: bool) -> list[Denied]:
    """Return calls that make processes in new namespaces, or any processes that are not threads."""
    threads_only = [] if programs else [Denied("clone", 0, _CLONE_THREAD, 0)]
    # The flags of clone3 are in memory, where a filter cannot read them. Without it, libc uses clone.
    return [
        *threads_only,
        *(Denied("clone", 0, bit, bit) for bit in _NEW_NAMESPACES),
        Denied("clone3", code=errno.ENOSYS),
    ]
