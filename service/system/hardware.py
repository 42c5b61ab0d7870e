"""What the kernel tells of the device in /proc and /sys: temperatures, frequencies, memory, the name of the board.

Every reader takes the root of these trees, so that tests can bring the trees of other boards. What a board does not
have, or does not tell at the moment, is left out; nothing here raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

_THROTTLING_TRIPS = ("passive", "hot", "critical")  # an "active" one only turns a fan on
# Jetson Nano and TX2 report a constant 100 degrees under this name.
_CONSTANT_ZONES = frozenset({"PMIC-Die"})
_GPU_NAMES = ("gpu", "gm20b", "gp10b", "gv11b", "ga10b")  # devfreq's names of the GPUs of Jetsons, from Nano to Thor
_MAX_NAME = 64  # characters


@dataclass(frozen=True)
class Zone:
    """One thermal zone.

    Attributes:
        name: As the board calls it.
        celsius: Its temperature.
        limit_celsius: Where the kernel starts to slow the device down, or turns it off; None if it tells none.
    """

    name: str
    celsius: float
    limit_celsius: float | None


@dataclass(frozen=True)
class Clock:
    """Something with a frequency.

    Attributes:
        name: "0" for the cores that go with CPU 0; of a GPU its name in devfreq.
        hertz: Now.
        max_hertz: The most that the hardware can do; None if it does not tell.
        load: From 0 to 1; None if it does not tell.
    """

    name: str
    hertz: float
    max_hertz: float | None
    load: float | None = None


def zones(root: Path = ROOT) -> list[Zone]:
    """Thermal zones; one of a name that is taken gets its number behind it."""
    found: dict[str, Zone] = {}
    for folder in _numbered(root / "sys/class/thermal", "thermal_zone"):
        name, millidegrees = _text(folder / "type"), _number(folder / "temp")
        # A part that is switched off refuses to be read, or reads as the coldest that there is.
        if name in _CONSTANT_ZONES or millidegrees is None or millidegrees <= -40_000:
            continue
        name = name or folder.name
        if name in found:
            name += folder.name.removeprefix("thermal_zone")
        found[name] = Zone(name, millidegrees / 1000, _limit(folder))
    return list(found.values())


def cpus(root: Path = ROOT) -> list[Clock]:
    """One for each group of cores that share a frequency."""
    found = []
    for folder in _numbered(root / "sys/devices/system/cpu/cpufreq", "policy"):
        if (kilohertz := _number(folder / "scaling_cur_freq")) is not None:
            most = _number(folder / "cpuinfo_max_freq")
            name = folder.name.removeprefix("policy")
            found.append(Clock(name, 1000 * kilohertz, None if most is None else 1000 * most))
    return found


def gpus(root: Path = ROOT) -> list[Clock]:
    """Those of a Jetson; others have no files that tell of them."""
    found = []
    for folder in _folders(root / "sys/class/devfreq"):
        hertz = _number(folder / "cur_freq")
        if hertz is not None and any(name in folder.name for name in _GPU_NAMES):
            permille = _number(folder / "device/load")
            load = None if permille is None else permille / 1000
            found.append(Clock(folder.name, hertz, _number(folder / "max_freq"), load))
    return found


def memory(root: Path = ROOT) -> dict[str, int]:
    """Bytes by the names of /proc/meminfo."""
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        fields = value.split()
        if len(fields) == 2 and fields[1] == "kB" and fields[0].isdecimal():
            found[name] = int(fields[0]) << 10
    return found


def board(root: Path = ROOT) -> str:
    """The maker's name of the board or the machine, at most 64 printable characters; "" if there is none."""
    named = _text(root / "proc/device-tree/model") or _text(root / "sys/class/dmi/id/product_name")
    return "".join(character for character in named if character.isprintable())[:_MAX_NAME].strip()


def _limit(zone: Path) -> float | None:
    limits = []
    for kind in zone.glob("trip_point_*_type"):
        millidegrees = _number(kind.with_name(kind.name.replace("_type", "_temp")))
        if _text(kind) in _THROTTLING_TRIPS and millidegrees is not None and millidegrees > 0:  # below: switched off
            limits.append(millidegrees / 1000)
    return min(limits, default=None)


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """Entries called `prefix` and a number, by that number."""
    entries = [entry for entry in _folders(folder) if entry.name.removeprefix(prefix).isdecimal()]
    return sorted(entries, key=lambda entry: int(entry.name.removeprefix(prefix)))


def _folders(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:  # no such class of devices here
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
