"""Metrics of the device itself: memory, disk, temperatures, frequencies. They are read at each scrape."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.system import hardware
from service.system.hardware import ROOT

_MAX_SERIES = 32  # per metric: a server has a frequency per core, and may have a hundred cores

Samples = Iterable[tuple[tuple[str, ...], float | None]]


class DeviceCollector(Collector):
    """Collector of the readings of /proc, /sys and the filesystem.

    Args:
        state_dir: Folder whose filesystem's free space is exported, or None to leave that out.
        root: Folder that holds /proc and /sys.
    """

    def __init__(self, state_dir: Path | None, root: Path = ROOT) -> None:
        self._state_dir = state_dir
        self._root = root

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, including those without a sample on this device."""
        yield from self._memory()
        yield from self._clocks()
        zones = hardware.zones(self._root)
        temperatures = [((zone.name,), zone.celsius) for zone in zones]
        limits = [((zone.name,), zone.limit_celsius) for zone in zones]
        slowed = "Temperature at which the kernel throttles the device or shuts it down."
        yield _gauge("device_temperature_celsius", "Temperature of a thermal zone.", temperatures, "zone")
        yield _gauge("device_temperature_limit_celsius", slowed, limits, "zone")
        board = [((hardware.board(self._root), os.uname().machine), 1.0)]
        yield _gauge("device_info", "Always 1; the labels describe the device.", board, "board", "machine")
        if self._state_dir is not None:
            yield from _disk(self._state_dir)

    def _memory(self) -> Iterable[Metric]:
        memory = hardware.memory(self._root)
        for name, help_text, key in (
            ("device_memory_total_bytes", "Memory of the device.", "MemTotal"),
            ("device_memory_available_bytes", "Memory available without swapping.", "MemAvailable"),
            ("device_gpu_memory_used_bytes", "Memory that a Jetson's GPU uses.", "NvMapMemUsed"),
        ):
            yield _gauge(name, help_text, [((), memory.get(key))])

    def _clocks(self) -> Iterable[Metric]:
        cpus, gpus = hardware.cpus(self._root), hardware.gpus(self._root)
        for kind, clocks in (("cpu", cpus), ("gpu", gpus)):
            now, most = [((c.name,), c.hertz) for c in clocks], [((c.name,), c.max_hertz) for c in clocks]
            yield _gauge(f"device_{kind}_frequency_hertz", f"Frequency of the {kind.upper()}.", now, kind)
            yield _gauge(f"device_{kind}_frequency_max_hertz", f"Highest frequency of the {kind.upper()}.", most, kind)
        loads = [((gpu.name,), gpu.load) for gpu in gpus]
        yield _gauge("device_gpu_load_ratio", "Utilization of the GPU.", loads, "gpu")


def _disk(folder: Path) -> Iterable[Metric]:
    try:
        usage = shutil.disk_usage(folder)
        total, free = float(usage.total), float(usage.free)
    except OSError:
        total = free = math.nan
    yield _gauge("state_disk_free_bytes", "Free space on the filesystem of the state folder.", [((), free)])
    yield _gauge("state_disk_total_bytes", "Size of the filesystem of the state folder.", [((), total)])


def _gauge(name: str, help_text: str, samples: Samples, *labels: str) -> Metric:
    family = GaugeMetricFamily(f"edged_{name}", help_text, labels=labels)
    known = [(values, value) for values, value in samples if value is not None]
    for values, value in known[:_MAX_SERIES]:
        family.add_metric(values, value)
    return family
