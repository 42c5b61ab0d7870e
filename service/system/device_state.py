"""State of the device: temperature, memory, power. Read from /sys and /proc; a reading that is missing is None.

Every path is below `root`, so that a test can provide its own device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.system import hardware

_POWER_MODE = re.compile(r"pmode:(\d+)")
_POWER_MODEL = re.compile(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)


@dataclass(frozen=True)
class PowerMode:
    """The power mode that nvpmodel has set on a Jetson.

    Attributes:
        number: ID of the mode.
        name: Name of the mode, for example MAXN or 15W; "" if /etc/nvpmodel.conf does not name it.
    """

    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.number} ({self.name})" if self.name else str(self.number)


@dataclass(frozen=True)
class DeviceState:
    """The readings of one device.

    Attributes:
        root: Folder that contains /sys, /proc, /etc and /var.
    """

    root: Path = Path("/")

    def temperature_c(self) -> float | None:
        """Return the temperature of the hottest thermal zone in degrees Celsius, or None without one."""
        return max((zone.celsius for zone in hardware.zones(self.root)), default=None)

    def available_memory_bytes(self) -> int | None:
        """Return the memory available without swapping in bytes, or None if it is unknown."""
        return hardware.memory(self.root).get("MemAvailable")

    def on_battery(self) -> bool:
        """Return whether the device runs on a battery; False without a battery or if it is unknown.

        The device is not on battery if any adapter is plugged in. Otherwise it is if a battery is discharging, or if
        it has a battery and an unplugged adapter. Batteries of peripherals, such as mice, do not count.
        """
        unplugged = discharging = False
        for supply in self._folders("sys/class/power_supply", "*"):
            kind = _read(supply / "type")
            if kind == "Battery":
                discharging |= _read(supply / "scope") != "Device" and _read(supply / "status") == "Discharging"
            elif kind is not None and (online := _read(supply / "online")) is not None:
                if online != "0":
                    return False
                unplugged |= kind == "Mains"
        return discharging or (unplugged and self._has_battery())

    def power_mode(self) -> PowerMode | None:
        """Return the power mode of a Jetson, or None on other devices."""
        match = _POWER_MODE.search(_read(self.root / "var/lib/nvpmodel/status") or "")
        if match is None:
            return None
        names = {
            int(number): name for number, name in _POWER_MODEL.findall(_read(self.root / "etc/nvpmodel.conf") or "")
        }
        return PowerMode(int(match[1]), names.get(int(match[1]), ""))

    def _has_battery(self) -> bool:
        supplies = self._folders("sys/class/power_supply", "*")
        return any(_read(s / "type") == "Battery" and _read(s / "scope") != "Device" for s in supplies)

    def _folders(self, parent: str, pattern: str) -> Iterator[Path]:
        try:
            yield from sorted((self.root / parent).glob(pattern))
        except OSError:
            return


def _read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None
