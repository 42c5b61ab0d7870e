"""Readings of the device from /proc and /sys: temperatures, frequencies, memory, name of the board.

Every function takes the root of these trees, so that tests can provide the trees of other boards. A missing or
unreadable value is left out; nothing here raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

_THROTTLING_TRIPS = ("passive", "hot", "critical")  # an "active" trip point only turns on a fan
# Jetson Nano and TX2 report a constant 100 degrees under this name.
_CONSTANT_ZONES = frozenset({"PMIC-Die"})
_GPU_NAMES = ("gpu", "gm20b", "gp10b", "gv11b", "ga10b")  # names in devfreq of the GPUs of Jetsons, from Nano to Thor
_MAX_NAME = 64  # characters


@dataclass(frozen=True)
class Zone:
    """A reading of one thermal zone.

    Attributes:
        name: Name given by the board.
        celsius: Temperature in degrees Celsius.
        limit_celsius: Temperature at which the kernel starts to throttle or turns the device off; None if unknown.
    """

    name: str
    celsius: float
    limit_celsius: float | None


@dataclass(frozen=True)
class Clock:
    """A reading of one clock of a group of CPU cores or of a GPU.

    Attributes:
        name: Number of the first core of a group, such as "0", or the name of a GPU in devfreq.
        hertz: Current frequency.
        max_hertz: Highest frequency of the hardware; None if unknown.
        load: Utilization from 0 to 1; None if unknown.
    """

    name: str
    hertz: float
    max_hertz: float | None
    load: float | None = None


def zones(root: Path = ROOT) -> list[Zone]:
    """Return the thermal zones; a duplicate name gets the number of its zone as a suffix."""
    found: dict[str, Zone] = {}
    for folder in _numbered(root / "sys/class/thermal", "thermal_zone"):
        name, millidegrees = _text(folder / "type"), _number(folder / "temp")
        # The sensor of a part that is switched off cannot be read, or reads as an impossibly low temperature.
        if name in _CONSTANT_ZONES or millidegrees is None or millidegrees <= -40_000:
            continue
        name = name or folder.name
        if name in found:
            name += folder.name.removeprefix("thermal_zone")
        found[name] = Zone(name, millidegrees / 1000, _limit(folder))
    return list(found.values())


def cpus(root: Path = ROOT) -> list[Clock]:
    """Return one clock for each group of cores that share a frequency."""
    found = []
    for folder in _numbered(root / "sys/devices/system/cpu/cpufreq", "policy"):
        if (kilohertz := _number(folder / "scaling_cur_freq")) is not None:
            most = _number(folder / "cpuinfo_max_freq")
            name = folder.name.removeprefix("policy")
            found.append(Clock(name, 1000 * kilohertz, None if most is None else 1000 * most))
    return found


def gpus(root: Path = ROOT) -> list[Clock]:
    """Return the GPU clocks of a Jetson; other GPUs have no such files."""
    found = []
    for folder in _folders(root / "sys/class/devfreq"):
        hertz = _number(folder / "cur_freq")
        if hertz is not None and any(name in folder.name for name in _GPU_NAMES):
            permille = _number(folder / "device/load")
            load = None if permille is None else permille / 1000
            found.append(Clock(folder.name, hertz, _number(folder / "max_freq"), load))
    return found


def memory(root: Path = ROOT) -> dict[str, int]:
    """Return the values of /proc/meminfo in bytes by their names."""
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        fields = value.split()
        if len(fields) == 2 and fields[1] == "kB" and fields[0].isdecimal():
            found[name] = int(fields[0]) << 10
    return found


def board(root: Path = ROOT) -> str:
    """Return the vendor's name of the board, at most 64 printable characters, or "" if unknown."""
    named = _text(root / "proc/device-tree/model") or _text(root / "sys/class/dmi/id/product_name")
    return "".join(character for character in named if character.isprintable())[:_MAX_NAME].strip()


def _limit(zone: Path) -> float | None:
    limits = []
    for kind in zone.glob("trip_point_*_type"):
        millidegrees = _number(kind.with_name(kind.name.replace("_type", "_temp")))
        if _text(kind) in _THROTTLING_TRIPS and millidegrees is not None and millidegrees > 0:  # 0 or less: disabled
            limits.append(millidegrees / 1000)
    return min(limits, default=None)


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """Return the entries whose names are `prefix` and a number, sorted by that number."""
    entries = [entry for entry in _folders(folder) if entry.name.removeprefix(prefix).isdecimal()]
    return sorted(entries, key=lambda entry: int(entry.name.removeprefix(prefix)))


def _folders(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:  # the machine has no such class of devices
        return


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None
