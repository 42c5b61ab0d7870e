"""The device at a glance, for the status page: free disk space and the temperature of the hottest zone."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from service.system import hardware


def device_summary(state_dir: Path, root: Path = hardware.ROOT) -> dict[str, Any]:
    """Read what the status page shows of the device. A value that cannot be read is None.

    Args:
        state_dir: Folder whose filesystem is measured.
        root: Folder that holds /proc and /sys.

    Returns:
        "disk_free_bytes" and "disk_total_bytes"; and of the hottest thermal zone "zone", its name, "temperature_c" and
        "temperature_limit_c", at which the kernel throttles the device.
    """
    disk: dict[str, int | None] = {"disk_free_bytes": None, "disk_total_bytes": None}
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(state_dir)
        disk = {"disk_free_bytes": usage.free, "disk_total_bytes": usage.total}
    hottest = max(hardware.zones(root), key=lambda zone: zone.celsius, default=None)
    return {
        **disk,
        "zone": None if hottest is None else hottest.name,
        "temperature_c": None if hottest is None else hottest.celsius,
        "temperature_limit_c": None if hottest is None else hottest.limit_celsius,
    }
