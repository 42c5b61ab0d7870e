"""Scheduling conditions of the device. A postponement is not a failure and does not count as an attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from service.config.windows import seconds_until_open
from service.outcomes import Postponement
from service.system.device_state import DeviceState
from service.units import format_bytes
from service.worker.sandbox import REQUIRE, Part, available, lacking

if TYPE_CHECKING:
    from service.config.sections import WorkerConfig

# Clocks are adjusted and daylight saving time ends: a window that opens in half a day is rechecked before, too.
_LONGEST_WAIT_S = 3600.0


def why_not_now(
    worker: WorkerConfig, device: DeviceState, now: float, sandbox: Callable[[], Iterable[Part]] = available
) -> Postponement | None:
    """Check the device's conditions; returns the first reason to wait, or None.

    Missing readings never postpone an update.

    Args:
        worker: Configured conditions.
        device: State of the device; only what is configured is read.
        now: Seconds since 1970.
        sandbox: Returns the parts of a worker's sandbox on this device.
    """
    windows = worker.window or ()
    if (wait_s := seconds_until_open(windows, now)) > 0:
        listed = ", ".join(map(str, windows))
        return Postponement("window", f"worker.window is {listed}", min(wait_s, _LONGEST_WAIT_S))
    reason = _unconfined(worker, sandbox)
    reason = reason or _too_hot(worker, device) or _too_full(worker, device) or _too_weak(worker, device)
    return None if reason is None else Postponement(*reason, worker.recheck_s)


def _unconfined(worker: WorkerConfig, sandbox: Callable[[], Iterable[Part]]) -> tuple[str, str] | None:
    if worker.sandbox != REQUIRE or not (missing := lacking(sandbox())):
        return None
    return "sandbox", f"worker.sandbox is require, and this device lacks {missing}; set it to auto"


def _too_hot(worker: WorkerConfig, device: DeviceState) -> tuple[str, str] | None:
    limit = worker.defer_above_c
    if limit is None or (found := device.temperature_c()) is None or found <= limit:
        return None
    return "temperature", f"the device has {found:.1f} °C; worker.defer_above_c is {limit:g}"


def _too_full(worker: WorkerConfig, device: DeviceState) -> tuple[str, str] | None:
    limit = worker.min_free_memory
    if limit is None or (found := device.available_memory_bytes()) is None or found >= limit:
        return None
    reason = f"{format_bytes(found)} of memory are available; worker.min_free_memory is {format_bytes(limit)}"
    return "free_memory", reason


def _too_weak(worker: WorkerConfig, device: DeviceState) -> tuple[str, str] | None:
    if worker.defer_on_battery and device.on_battery():
        return "battery", "the device runs on its battery; worker.defer_on_battery is set"
    if worker.power_modes and (mode := device.power_mode()) is not None:
        allowed = {wanted.casefold() for wanted in worker.power_modes}
        if not allowed & {str(mode.number), mode.name.casefold()}:
            return "power_mode", f"the power mode is {mode}; worker.power_modes are {', '.join(worker.power_modes)}"
    return None
