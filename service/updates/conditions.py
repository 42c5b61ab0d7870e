"""Whether now is a good time to quantize. What the device is told to wait for is no failure and uses up no try."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.config.windows import seconds_until_open
from service.outcomes import Postponement
from service.system.device_state import DeviceState
from service.units import format_bytes

if TYPE_CHECKING:
    from service.config.sections import WorkerConfig

# Clocks are set and summer time ends: a window that opens in half a day is looked at before, too.
_LONGEST_WAIT_S = 3600.0


def why_not_now(worker: WorkerConfig, device: DeviceState, now: float) -> Postponement | None:
    """The first reason to wait; None if there is none. What the device does not tell is no reason.

    Args:
        worker: What was configured.
        device: Asked for what is configured only.
        now: Seconds since 1970.
    """
    windows = worker.window or ()
    if (wait_s := seconds_until_open(windows, now)) > 0:
        told = ", ".join(map(str, windows))
        return Postponement("window", f"worker.window is {told}", min(wait_s, _LONGEST_WAIT_S))
    reason = _too_hot(worker, device) or _too_full(worker, device) or _too_weak(worker, device)
    return None if reason is None else Postponement(*reason, worker.recheck_s)


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
