"""Checks of memory, inotify and the clock."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

from service.config.load import Config
from service.doctor.check import OK, WARN, Check, Machine
from service.storage.paths import Paths
from service.system import hardware
from service.system.free_memory import left_in_groups
from service.units import format_bytes

# `import torch` and one convolution take 250 MB, a serving ResNet-50 about 400 (measured).
_MEMORY_WARN = 1 << 30
_INSTANCES, _SPARE_WATCHES = 2, 16  # needed by edged, and spare in addition to its watched folders
_INOTIFY = "/proc/sys/fs/inotify"
_EARLIEST_YEAR = 2025  # edged is not older
_DAY_S = 86_400.0


def check_memory(machine: Machine, config: Config | None) -> Iterator[Check]:
    """Check that there is enough memory for a worker in addition to a serving generation."""
    known = hardware.memory(machine.root)
    if not known.keys() >= {"MemAvailable", "MemTotal"}:
        yield Check("memory", WARN, "/proc/meminfo cannot be read", "`mount -t proc proc /proc`")
        return
    available, total = known["MemAvailable"], known["MemTotal"]
    detail = f"{format_bytes(available)} of {format_bytes(total)} available"
    limit = config.worker.memory_max if config is not None else None
    if (left := left_in_groups(machine.root)) is not None and left < available:
        detail += f", of which the control group's limit leaves {format_bytes(left)}"
        available = left
    if available < _MEMORY_WARN:
        fix = "stop other programs (`ps aux --sort=-rss | head`), add swap, or set worker.memory_max and models[].swap"
        yield Check("memory", WARN, f"{detail}; a worker and a generation want 1 GiB", fix)
    elif limit is not None and limit > available:
        fix = f"set worker.memory_max below {format_bytes(available)}, or stop others (`ps aux --sort=-rss | head`)"
        yield Check("memory", WARN, f"{detail}; worker.memory_max is {format_bytes(limit)}", fix)
    else:
        yield Check("memory", OK, detail)


def check_inotify(machine: Machine, config: Config | None) -> Iterator[Check]:
    """Check the limits of inotify and their use; without inotify the drop folder is polled."""
    instances = machine.number(f"{_INOTIFY}/max_user_instances")
    watches = machine.number(f"{_INOTIFY}/max_user_watches")
    if instances is None or watches is None:
        yield Check("inotify", WARN, "not available", "nothing: the drop folder is scanned every 2 s instead")
        return
    needed = _SPARE_WATCHES + (len(config.models) if config is not None else 0)
    used_instances, used_watches = _inotify_in_use(machine)
    detail = f"{used_instances} of {instances} instances and {used_watches} of {watches} watches in use"
    if instances - used_instances < _INSTANCES:
        fix = f"`sudo sysctl fs.inotify.max_user_instances={max(2 * instances, 128)}`, and the same in /etc/sysctl.d"
        yield Check("inotify", WARN, f"{detail}; without one more the drop folder is polled", fix)
    elif watches - used_watches < needed:
        fix = f"`sudo sysctl fs.inotify.max_user_watches={max(2 * watches, 8192)}`, and the same in /etc/sysctl.d"
        yield Check("inotify", WARN, f"{detail}; without more the drop folder is polled", fix)
    else:
        yield Check("inotify", OK, detail)


def check_clock(machine: Machine, config: Config | None) -> Iterator[Check]:
    """Check that the clock is set, so that times in the journal and the metrics are meaningful."""
    now = machine.now()
    moment = datetime.datetime.fromtimestamp(now, tz=datetime.timezone.utc)
    text = f"{moment:%Y-%m-%d %H:%M} UTC"
    fix = "`sudo timedatectl set-ntp true`, or `sudo date -s '2026-01-31 12:00'` by hand"
    if moment.year < _EARLIEST_YEAR:
        yield Check("clock", WARN, f"{text} cannot be: the clock was never set", fix)
    elif (written := _last_written(config)) is not None and written > now + _DAY_S:
        later = datetime.datetime.fromtimestamp(written, tz=datetime.timezone.utc)
        yield Check("clock", WARN, f"{text}, but the journal was written on {later:%Y-%m-%d}: the clock went back", fix)
    elif _synchronized(machine) is False:
        yield Check("clock", WARN, f"{text}, not synchronized with a time server", "`sudo timedatectl set-ntp true`")
    else:
        known = "synchronized" if _synchronized(machine) else "whether it is synchronized is not known"
        yield Check("clock", OK, f"{text}, {known}")


def _inotify_in_use(machine: Machine) -> tuple[int, int]:
    """Count the inotify instances and watches of this user's processes, as far as they are visible."""
    instances = watches = 0
    for process in machine.path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process exited, or its descriptors may not be read
            if process.stat().st_uid != machine.uid:
                continue
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) == "anon_inode:inotify":
                    instances += 1
                    listing = (process / "fdinfo" / descriptor.name).read_text()
                    watches += sum(line.startswith("inotify wd:") for line in listing.splitlines())
    return instances, watches


def _last_written(config: Config | None) -> float | None:
    if config is None:
        return None
    try:
        return Paths(config.state_dir).journal.stat().st_mtime
    except OSError:
        return None


def _synchronized(machine: Machine) -> bool | None:
    if machine.path("/run/systemd/timesync/synchronized").exists():
        return True
    return machine.synchronized()
