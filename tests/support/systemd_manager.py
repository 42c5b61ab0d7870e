"""A real systemd as init of its own namespaces, on a copy of this machine's root that vanishes with it.

Nothing of it outlives `close`: the copy is an overlay whose changes lie in memory, and all mounts are private.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.repository import ROOT

T = TypeVar("T")

SYSTEMD = Path("/lib/systemd/systemd")
SYSTEM_PYTHON = Path("/usr/bin/python3")  # one that a user of the service may run, whoever runs the tests
SOURCES = Path("/usr/src/edged")  # of the repository, inside
UP_S, DOWN_S = 60.0, 60.0

# Arguments: scratch folder, repository, packages, names of version 1 control groups' controllers.
# The packages stand for what a device's image brings: torch and the like, without edged itself.
ENTER = r"""
set -e
scratch=$1 sources=$2 packages=$3; shift 3
mount -t tmpfs tmpfs "$scratch"
cd "$scratch"
mkdir upper work root packages-upper packages-work
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
shared=usr/local/lib/python$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')/dist-packages
mkdir -p "$shared" usr/src/edged
mount -t overlay overlay -o "lowerdir=$packages,upperdir=../packages-upper,workdir=../packages-work" "$shared"
rm -rf "$shared"/edged-*.dist-info "$shared"/__editable__*edged*
chmod 755 "$shared"
mount --bind "$sources" usr/src/edged
mount -o remount,bind,ro usr/src/edged
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
for controller in "$@"; do
    mkdir "sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "sys/fs/cgroup/$controller"
done
mkdir sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty fuse; do
    [ -e "/dev/$node" ] && touch "dev/$node" && mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
ip link set lo up
mkdir host
pivot_root . host
umount -l /host
rmdir /host
mount --make-rshared /
exec env -i container=edged PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=basic.target --show-status=0 --log-target=journal
"""


def eventually(look: Callable[[], T], what: str, timeout_s: float = 120.0) -> T:
    """Return the first result of `look` that is true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if result := look():
            return result
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen within {timeout_s} s")


def missing() -> str | None:
    """Return why systemd cannot run in namespaces here, or None if it can."""
    if os.getuid() != 0:
        return "it takes root to make namespaces and control groups"
    if not SYSTEMD.exists() or not SYSTEM_PYTHON.exists():
        return f"there is no {SYSTEMD} or no {SYSTEM_PYTHON}"
    tools = ("unshare", "nsenter", "setpriv", "ip", "make", "systemd-sysusers", "systemd-tmpfiles")
    if lacking := [tool for tool in tools if shutil.which(tool) is None]:
        return f"{', '.join(lacking)} not installed"
    found = subprocess.run([SYSTEM_PYTHON, "-c", "import sys, ensurepip; print(sys.version_info[:2])"],
                           capture_output=True, text=True)  # fmt: skip
    if found.stdout.strip() != str(sys.version_info[:2]):
        return f"{SYSTEM_PYTHON} has no venv, or cannot load the packages of {sys.executable}: another version"
    if not _controllers():
        return "there are no control groups of version 1, which this harness sets up"
    probe = "cd $(mktemp -d) && mount -t tmpfs t . && cd $PWD && mkdir u w m && "
    probe += "mount -t overlay o -o lowerdir=/,upperdir=u,workdir=w m"
    unshare = ["unshare", "--mount", "--pid", "--net", "--fork", "bash", "-c", probe]
    tried = subprocess.run(unshare, capture_output=True, text=True)
    return f"no namespaces or overlay: {tried.stderr.strip()}" if tried.returncode else None


class Manager:
    """The systemd of this machine, in namespaces of its own.

    Args:
        scratch: An empty folder.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._groups: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._log = scratch.with_suffix(".log")
        self.pid = 0

    @property
    def root(self) -> Path:
        """Return its root folder, as seen from outside."""
        return Path(f"/proc/{self.pid}/root")

    def start(self) -> Manager:
        """Start systemd and wait until it is up."""
        controllers = _controllers()
        self._make_groups(controllers)
        into = "; ".join(f"echo $$ > {group}/cgroup.procs" for group in self._groups)
        namespaces = "--pid --mount --uts --ipc --net --cgroup --fork --kill-child"
        packages = next(path for path in site.getsitepackages() if Path(path).is_dir())
        enter = f'{into}; exec setpriv --pdeathsig KILL unshare {namespaces} bash -c "$@"'
        arguments = [ENTER, "bash", str(self._scratch), str(ROOT), packages, *controllers]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", enter, "bash", *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.pid = eventually(self._init, "the namespaces are there", UP_S)
        eventually(self._is_up, "systemd has started", UP_S)
        return self

    def close(self) -> None:
        """Shut systemd down and remove its files."""
        if self._process is not None:
            if self._process.poll() is None and self.pid:
                self._enter(["systemctl", "poweroff", "--no-block"], timeout=DOWN_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DOWN_S)
            self._process.kill()
            self._process.wait()
        eventually(self._remove_groups, "its control groups are empty", DOWN_S)

    def run(self, *command: str | Path, **options: Any) -> str:
        """Run a command inside and return its output.

        Raises:
            AssertionError: It failed.
        """
        done = self._enter(list(command), **options)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fails(self, *command: str | Path, **options: Any) -> str:
        """Run a command inside that must fail, and return its output."""
        done = self._enter(list(command), **options)
        assert done.returncode != 0, f"{command}: {done.stdout}"
        return done.stdout + done.stderr

    def shell(self, script: str, **environment: str) -> str:
        """Run a line of shell in the repository."""
        given = [f"{name}={value}" for name, value in environment.items()]
        return self.run("env", "-C", SOURCES, *given, "bash", "-ec", script, timeout=300)

    @contextlib.contextmanager
    def spawned(self, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
        """Run a command inside until it exits or the context ends."""
        bound = ["setpriv", "--pdeathsig", "KILL", *command]  # nsenter only waits for it
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(self._inside(bound), text=True, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def main_pid(self, unit: str) -> int:
        """Return the main PID of a service in its own namespace, or 0 if it has none."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str) -> str:
        """Return the log of a unit, with systemd's lines about it."""
        self.run("journalctl", "--sync")  # what has been written, but not yet read
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", f"--unit={unit}")

    def host_pid(self, pid: int) -> int:
        """Return the outer PID of an inner process."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                line = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:"))
                _, outer, *inner = line.split()
                if inner == [str(pid)] and _same_namespace(int(outer), self.pid):
                    return int(outer)
        raise AssertionError(f"no process {pid} inside")

    def _init(self) -> int:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        return self._enter(["systemctl", "is-active", "basic.target"]).stdout.strip() == "active"

    def _enter(
        self, command: list[str | Path], timeout: float = 120.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._inside(command), capture_output=True, text=True, timeout=timeout, **options)

    def _inside(self, command: list[str | Path]) -> list[str]:
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "SYSTEMD_PAGER=cat"]
        return ["nsenter", "--target", str(self.pid), "--all", *clean, *map(str, command)]

    def _make_groups(self, controllers: list[str]) -> None:
        own = dict(line.split(":")[1:] for line in Path("/proc/self/cgroup").read_text().split())
        for controller in [*controllers, "systemd"]:
            mine = own.get("name=systemd" if controller == "systemd" else controller, "/")
            above = Path("/sys/fs/cgroup") / controller / mine.strip("/")
            group = above / f"edged-systemd-{os.getpid()}-{self._scratch.name}"
            group.mkdir()
            self._groups.append(group)
            if controller == "cpuset":
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (group / name).write_text((above / name).read_text())

    def _remove_groups(self) -> bool:
        for group in self._groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # its last process is still on its way out
                    Path(folder).rmdir()
        return not any(group.exists() for group in self._groups)


@contextlib.contextmanager
def managed(scratch: Path) -> Iterator[Manager]:
    """Run a manager, or skip the test with the reason why there is none."""
    if (reason := missing()) is not None:
        pytest.skip(f"no systemd in namespaces: {reason}")
    scratch.mkdir()
    manager = Manager(scratch)
    try:
        yield manager.start()
    finally:
        manager.close()


def _controllers() -> list[str]:
    """Return the mounted version 1 hierarchies with a single controller."""
    mounted = Path("/proc/self/mounts").read_text().splitlines()
    folders = [line.split()[1] for line in mounted if line.split()[2] == "cgroup"]
    known = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()[1:]}
    return sorted(Path(folder).name for folder in folders if Path(folder).name in known)


def _same_namespace(one: int, other: int) -> bool:
    return Path(f"/proc/{one}/ns/pid").readlink() == Path(f"/proc/{other}/ns/pid").readlink()
