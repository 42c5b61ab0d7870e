"""How the device is: heat, memory, power. Read from /sys and /proc; what a device does not tell is None.

Every path is below `root`, so that a test can bring a device of its own.
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
    """What nvpmodel was set to.

    Attributes:
        number: Its ID.
        name: For example MAXN or 15W; "" if /etc/nvpmodel.conf does not tell.
    """

    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.number} ({self.name})" if self.name else str(self.number)


@dataclass(frozen=True)
class DeviceState:
    """One device.

    Attributes:
        root: Where /sys, /proc, /etc and /var lie.
    """

    root: Path = Path("/")

    def temperature_c(self) -> float | None:
        """The hottest thermal zone, degrees Celsius."""
        return max((zone.celsius for zone in hardware.zones(self.root)), default=None)

    def available_memory_bytes(self) -> int | None:
        """Memory that can be had without swapping."""
        return hardware.memory(self.root).get("MemAvailable")

    def on_battery(self) -> bool:
        """Whether a battery is what keeps it going; False where there is none, or where nobody knows.

        An adapter that is plugged in decides. Without one, an adapter that is not plugged in does, or a battery that is
        being used up; batteries of mice and the like do not count.
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
        """A Jetson's power mode."""
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
