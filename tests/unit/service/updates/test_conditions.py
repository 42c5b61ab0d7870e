import time

import pytest

from service.config.sections import WorkerConfig
from service.config.windows import parse_windows
from service.system.device_state import DeviceState, PowerMode
from service.updates.conditions import why_not_now
from service.worker.sandbox import Part


class Scripted(DeviceState):
    """A device with scripted readings; fails when a reading is not configured."""

    def __init__(self, **answers: object) -> None:
        for name in ("temperature_c", "available_memory_bytes", "on_battery", "power_mode"):
            object.__setattr__(self, name, self._answer(name, answers))

    @staticmethod
    def _answer(name, answers):
        def answer():
            assert name in answers, f"{name} is not configured"
            return answers[name]

        return answer


def why(device, now=0.0, **worker):
    found = why_not_now(WorkerConfig(**worker), device, now)
    return None if found is None else (found.code, found.reason, found.seconds)


def test_by_default_no_condition_is_read():
    assert why(Scripted()) is None


def test_a_device_that_cannot_confine_a_worker_waits_if_that_is_required():
    parts = [Part("files", "the kernel has no Landlock"), Part("network")]
    reason = "worker.sandbox is require, and this device lacks files: the kernel has no Landlock; set it to auto"
    found = why_not_now(WorkerConfig(sandbox="require", recheck_s=5.0), Scripted(), 0.0, lambda: parts)
    assert (found.code, found.reason, found.seconds) == ("sandbox", reason, 5.0)
    assert why_not_now(WorkerConfig(sandbox="require"), Scripted(), 0.0, lambda: [Part("network")]) is None
    assert why_not_now(WorkerConfig(), Scripted(), 0.0, lambda: parts) is None


def test_a_hot_device_waits():
    assert why(Scripted(temperature_c=80.04), defer_above_c=80.0) == (
        "temperature",
        "the device has 80.0 °C; worker.defer_above_c is 80",
        60.0,
    )
    assert why(Scripted(temperature_c=80.0), defer_above_c=80.0) is None
    assert why(Scripted(temperature_c=None), defer_above_c=80.0) is None


def test_a_full_device_waits():
    found = why(Scripted(available_memory_bytes=1 << 29), min_free_memory=1 << 30, recheck_s=5.0)
    assert found == ("free_memory", "512.0 MiB of memory are available; worker.min_free_memory is 1.0 GiB", 5.0)
    assert why(Scripted(available_memory_bytes=1 << 30), min_free_memory=1 << 30) is None
    assert why(Scripted(available_memory_bytes=None), min_free_memory=1 << 30) is None


def test_a_device_on_its_battery_waits():
    code, reason, _ = why(Scripted(on_battery=True), defer_on_battery=True)
    assert (code, reason) == ("battery", "the device runs on its battery; worker.defer_on_battery is set")
    assert why(Scripted(on_battery=False), defer_on_battery=True) is None


@pytest.mark.parametrize(("modes", "waits"), [(("maxn",), True), (("MAXN", "15w"), False), (("2",), False)])
def test_a_weak_power_mode_waits(modes, waits):
    found = why(Scripted(power_mode=PowerMode(2, "15W")), power_modes=modes)
    assert (found is not None) == waits
    if waits:
        assert found[:2] == ("power_mode", "the power mode is 2 (15W); worker.power_modes are maxn")
    assert why(Scripted(power_mode=None), power_modes=modes) is None


def test_outside_its_window_the_temperature_is_not_read():
    now = time.mktime((2026, 5, 5, 21, 30, 0, 0, 0, -1))
    window = {"window": parse_windows(["22:00-06:00"]), "defer_above_c": 80.0}
    assert why(Scripted(), now, **window) == ("window", "worker.window is 22:00-06:00", 1800.0)
    assert why(Scripted(), now - 6 * 3600, **window)[2] == 3600.0  # the clock may be set meanwhile
    assert why(Scripted(temperature_c=90.0), now + 1800, **window)[0] == "temperature"
    assert why(Scripted(temperature_c=50.0), now + 1800, **window) is None
