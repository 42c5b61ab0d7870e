"""What somebody would try who runs code of his own in a worker. Everything that works is done, and leaves no damage.

Found by `pipeline` next to it in a worker, whose only packages are those of edged.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sqlite3
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_DETACH, _WALL = 0x4206, 0x4207, 17, 0x4000_0000
_PIDFD_OPEN, _PIDFD_GETFD, _IO_URING_SETUP, _PROCESS_VM_READV = 434, 438, 425, {"x86_64": 310, "aarch64": 270}
_BPF, _ADD_KEY = {"x86_64": 321, "aarch64": 280}, {"x86_64": 248, "aarch64": 217}
_NETLINK, _PACKET = 16, 17
_CLONE_NEWNS = 0x0002_0000
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
TOLD = ".told.json"  # in the folder of the images
RESULTS = "attempts.json"  # in the cache of the model, which a worker may write to


@dataclass(frozen=True)
class Surroundings:
    """What a worker finds around it.

    Attributes:
        state: State folder.
        model: Its model.
        other: Another model of the daemon.
        config: The daemon's config file.
        token: File with the administration token.
        other_images: Calibration images of the other model.
        port: TCP port of the daemon.
        supervisor: Process ID.
        generation: Process ID of a process that serves a model.
        workplace: The worker's own folder.
        checkpoint: Its input.
        images: Calibration images.
    """

    state: Path
    model: str
    other: str
    config: Path
    token: Path
    other_images: Path
    port: int
    supervisor: int
    generation: int
    workplace: Path
    checkpoint: Path
    images: Path

    @classmethod
    def look_around(cls, job: Any, supervisor: int) -> Surroundings:
        """Return the surroundings of a worker.

        What a sandbox hides is told by a file next to the images, so that the worker can try to reach it nevertheless.
        """
        told = json.loads((job.calibration_dir / TOLD).read_text())
        return cls(
            **{key: Path(told[key]) for key in ("state", "config", "token", "other_images")},
            **{key: told[key] for key in ("other", "port", "generation")},
            model=job.name,
            supervisor=supervisor,
            workplace=job.out.parent,
            checkpoint=job.checkpoint,
            images=job.calibration_dir,
        )

    def published(self, model: str) -> Path:
        """Return the folder of the first generation of a model."""
        return self.state / "models" / model / "gen" / "1"


def try_all(around: Surroundings) -> dict[str, str]:
    """Try everything; return "" for what worked, or the reason why it did not, by name."""
    found = {}
    for name, attempt in {**ATTEMPTS, **NEEDED}.items():
        try:
            attempt(around)
            found[name] = ""
        except (OSError, sqlite3.Error, subprocess.SubprocessError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def overwrite(path: Path) -> None:
    """Write the first byte of a file over itself."""
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(first)


def make(path: Path) -> None:
    """Make a file and remove it again."""
    path.write_bytes(b"taken over")
    path.unlink()


def read_image(folder: Path) -> None:
    """Read an image of a folder of class folders."""
    below = sorted(name for name in os.listdir(folder) if not name.startswith("."))[0]  # noqa: PTH208 - glob hides errors
    (folder / below / os.listdir(folder / below)[0]).read_bytes()  # noqa: PTH208


def change_journal(around: Surroundings) -> None:
    """Change the journal by its database, and take it back."""
    connection = sqlite3.connect(around.state / "journal.db", timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE taken_over (x)")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def switch_generation(around: Surroundings) -> None:
    """Put another `current` in the place of the one of another model, which leads to the same generation."""
    link = around.state / "models" / around.other / "current"
    new = link.with_name(".taken-over")
    new.symlink_to(link.readlink())
    new.rename(link)


def connect(family: int, address: Any) -> None:
    """Open a connection and close it."""
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect(address)


def send_datagram(_: Surroundings) -> None:
    """Send a datagram to this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"taken over", ("127.0.0.1", 9))


def listen(family: int, address: Any) -> None:
    """Accept connections for a moment."""
    with socket.socket(family) as server:
        server.bind(address)
        server.listen()


def open_socket(family: int, kind: int) -> None:
    """Open a socket."""
    socket.socket(family, kind).close()


def datagram_pair(_: Surroundings) -> None:
    """Make a pair of sockets, one of which could send to any path without socket(2)."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.close()
    right.close()


def call(number: int, *arguments: Any) -> int:
    """Make a system call."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    result = library.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def read_memory_file(around: Surroundings) -> None:
    """Read the heap of the supervisor in /proc/PID/mem."""
    start = next(
        int(line.split("-")[0], 16)
        for line in Path(f"/proc/{around.supervisor}/maps").read_text().splitlines()
        if line.endswith("[heap]")
    )
    with Path(f"/proc/{around.supervisor}/mem").open("rb", buffering=0) as memory:
        memory.seek(start)
        memory.read(8)


def read_memory_by_call(around: Surroundings) -> None:
    """Read memory of the supervisor by process_vm_readv; its program is mapped where ours is without randomization."""

    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    buffer = ctypes.create_string_buffer(8)
    here, there = Vector(ctypes.addressof(buffer), 8), Vector(ctypes.addressof(buffer), 8)
    try:
        number = _PROCESS_VM_READV[os.uname().machine]
        one = ctypes.c_ulong(1)
        call(number, around.supervisor, ctypes.byref(here), one, ctypes.byref(there), one, ctypes.c_ulong(0))
    except OSError as error:
        if error.errno != errno.EFAULT:  # permitted, and nothing is mapped there
            raise


def trace(pid: int) -> None:
    """Trace a process, which stops it for a moment, and let it go on."""
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.restype = ctypes.c_long
    if library.ptrace(_PTRACE_SEIZE, pid, None, None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    library.ptrace(_PTRACE_INTERRUPT, pid, None, None)
    os.waitpid(pid, _WALL)
    library.ptrace(_PTRACE_DETACH, pid, None, None)


def steal_descriptor(around: Surroundings) -> None:
    """Take standard error of the supervisor."""
    process = call(_PIDFD_OPEN, around.supervisor, 0)
    os.close(call(_PIDFD_GETFD, process, 2, 0))


def signal_by_pidfd(around: Surroundings) -> None:
    """Send a harmless signal by a descriptor of the process."""
    signal.pidfd_send_signal(os.pidfd_open(around.supervisor), signal.SIGCONT)


def change_limit(around: Surroundings) -> None:
    """Set a limit of the supervisor to what it is."""
    limits = resource.prlimit(around.supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(around.supervisor, resource.RLIMIT_NOFILE, limits)


def change_priority(around: Surroundings) -> None:
    """Set the niceness of the supervisor to what it is."""
    os.setpriority(os.PRIO_PROCESS, around.supervisor, os.getpriority(os.PRIO_PROCESS, around.supervisor))


def change_cores(around: Surroundings) -> None:
    """Set the cores of the supervisor to what they are."""
    os.sched_setaffinity(around.supervisor, os.sched_getaffinity(around.supervisor))


def fork(_: Surroundings) -> None:
    """Start a process that could outlive this one."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def unshare(flags: int) -> None:
    """Enter new namespaces in a process of its own, so that this one stays where it is."""
    library = ctypes.CDLL(None, use_errno=True)
    codes: list[int] = []

    def enter() -> None:
        codes.append(0 if library.unshare(flags) == 0 else ctypes.get_errno())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if codes[0]:
        raise OSError(codes[0], os.strerror(codes[0]))


def mount(around: Surroundings) -> None:
    """Mount a filesystem over a folder, and take it away again."""
    library = ctypes.CDLL(None, use_errno=True)
    folder = around.workplace / "mounted"
    folder.mkdir(exist_ok=True)
    if library.mount(b"none", os.fsencode(folder), b"tmpfs", 0, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    library.umount2(os.fsencode(folder), 0)


def ring(_: Surroundings) -> None:
    """Make a ring, by which calls are made that no filter sees."""
    parameters = ctypes.create_string_buffer(120)
    os.close(call(_IO_URING_SETUP, 1, parameters))


def load_program(_: Surroundings) -> None:
    """Load a program into the kernel that does nothing."""
    code = ctypes.create_string_buffer(b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0")  # r0 = 0; exit
    name = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("IIQQ96x", 1, 2, ctypes.addressof(code), ctypes.addressof(name))
    os.close(call(_BPF[os.uname().machine], 5, attributes, len(attributes)))


def add_key(_: Surroundings) -> None:
    """Leave a key in the kernel for others of this user."""
    call(_ADD_KEY[os.uname().machine], b"user", b"taken over", b"x", 1, ctypes.c_int(-3))


def link_out(around: Surroundings) -> None:
    """Leave a link among the results, which the supervisor would follow with its own rights."""
    link = around.workplace / "manifest.sha256"
    link.symlink_to(around.state / "journal.db")
    link.unlink()


def hard_link(around: Surroundings) -> None:
    """Give the journal a second name among the results."""
    link = around.workplace / "journal"
    os.link(around.state / "journal.db", link)
    link.unlink()


def set_mode(path: Path) -> None:
    """Set the mode of a file to what it is."""
    path.chmod(path.stat().st_mode & 0o7777)


def truncate(path: Path) -> None:
    """Set the length of a file to what it is."""
    os.truncate(path, path.stat().st_size)


def read_environment(pid: int) -> bytes:
    """Read the environment of a process, which may hold secrets."""
    return Path(f"/proc/{pid}/environ").read_bytes()


def handle(path: Path) -> None:
    """Open a file by its handle, past all folders."""
    library = ctypes.CDLL(None, use_errno=True)
    data, mount_id = ctypes.create_string_buffer(struct.pack("Ii128x", 128, 0)), ctypes.c_int()
    if library.name_to_handle_at(-100, os.fsencode(path), data, ctypes.byref(mount_id), 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    folder = os.open("/", os.O_RDONLY)
    try:
        found = library.open_by_handle_at(folder, data, os.O_RDWR)
        if found < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.close(found)
    finally:
        os.close(folder)


Attempt = Callable[[Surroundings], Any]
ATTEMPTS: Mapping[str, Attempt] = {
    "read the journal": lambda a: (a.state / "journal.db").read_bytes(),
    "change the journal": change_journal,
    "write the journal's file": lambda a: overwrite(a.state / "journal.db"),
    "truncate the journal": lambda a: truncate(a.state / "journal.db"),
    "change the mode of the journal": lambda a: set_mode(a.state / "journal.db"),
    "give the journal a second name": hard_link,
    "write into a published generation": lambda a: overwrite(a.published(a.model) / "weights.safetensors"),
    "write into another model's generation": lambda a: overwrite(a.published(a.other) / "weights.safetensors"),
    "add a file to a published generation": lambda a: make(a.published(a.model) / "taken-over"),
    "make another generation current": switch_generation,
    "change its own claimed checkpoint": lambda a: overwrite(a.checkpoint),
    "drop a checkpoint for its model": lambda a: make(a.state / "drop" / a.model / ".taken-over"),
    "drop a checkpoint for another model": lambda a: make(a.state / "drop" / a.other / ".taken-over"),
    "change another model's image cache": lambda a: make(a.state / "calib" / a.other / "taken-over"),
    "change the calibration images": lambda a: make(a.images / ".taken-over"),
    "read another model's images": lambda a: read_image(a.other_images),
    "leave a symbolic link in its results": link_out,
    "read the token": lambda a: a.token.read_bytes(),
    "write the config": lambda a: overwrite(a.config),
    "connect to the admin socket": lambda a: connect(socket.AF_UNIX, str(a.state / "edged.sock")),
    "connect to the daemon by TCP": lambda a: connect(socket.AF_INET, ("127.0.0.1", a.port)),
    "listen on TCP": lambda _: listen(socket.AF_INET, ("127.0.0.1", 0)),
    "send a datagram by UDP": send_datagram,
    "listen on an abstract UNIX socket": lambda _: listen(socket.AF_UNIX, f"\0taken-over-{os.getpid()}"),
    "make a pair of sockets": datagram_pair,
    "open a netlink socket": lambda _: open_socket(_NETLINK, socket.SOCK_RAW),
    "open a packet socket": lambda _: open_socket(_PACKET, socket.SOCK_RAW),
    "signal the supervisor": lambda a: os.kill(a.supervisor, signal.SIGCONT),
    "signal the supervisor by a descriptor": signal_by_pidfd,
    "signal a generation": lambda a: os.kill(a.generation, signal.SIGCONT),
    "read the supervisor's memory by its file": read_memory_file,
    "read the supervisor's memory by a call": read_memory_by_call,
    "trace the supervisor": lambda a: trace(a.supervisor),
    "trace a generation": lambda a: trace(a.generation),
    "read the supervisor's environment": lambda a: read_environment(a.supervisor),
    "take a descriptor of the supervisor": steal_descriptor,
    "change the supervisor's limits": change_limit,
    "change the supervisor's priority": change_priority,
    "change the supervisor's cores": change_cores,
    "run a program": lambda _: subprocess.run(["/bin/true"], check=True),
    "start a process": fork,
    "enter a mount namespace": lambda _: unshare(_CLONE_NEWNS),
    "mount a filesystem": mount,
    "make an io_uring": ring,
    "load a BPF program": load_program,
    "add a kernel key": add_key,
    "open a file by its handle": lambda a: handle(a.state / "journal.db"),
    "add a file to the packages": lambda _: make(Path(psutil.__file__).with_name("taken_over.txt")),
    "write to /tmp": lambda _: make(Path(f"/tmp/.taken-over-{os.getpid()}")),  # noqa: S108 - that is the point
    "write to the home folder": lambda _: make(Path.home() / f".taken-over-{os.getpid()}"),
    "write to shared memory": lambda _: make(Path(f"/dev/shm/.taken-over-{os.getpid()}")),  # noqa: S108
    "read the passwords of the system": lambda _: Path("/etc/shadow").read_bytes(),
    "write a setting of the kernel": lambda _: _CORE_PATTERN.write_text(_CORE_PATTERN.read_text()),
}
# What it has to be able to do, as its work consists of it.
NEEDED: Mapping[str, Attempt] = {
    "read its checkpoint": lambda a: a.checkpoint.read_bytes(),
    "read a calibration image": lambda a: read_image(a.images),
    "write to its workplace": lambda a: make(a.workplace / "file"),
    "start a thread": lambda _: threading.Thread(target=len, args=("",)).start(),
}
