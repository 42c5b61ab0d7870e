from pathlib import Path

import psutil
import pytest

from service.system.device_state import DeviceState, PowerMode


class Device:
    """A made-up root folder with the files of a test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = DeviceState(root)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def zone(self, number: int, kind: str, millidegrees: str) -> None:
        self.write(f"sys/class/thermal/thermal_zone{number}/type", kind)
        self.write(f"sys/class/thermal/thermal_zone{number}/temp", millidegrees)

    def supply(self, name: str, **files: str) -> None:
        for file, text in files.items():
            self.write(f"sys/class/power_supply/{name}/{file}", text)


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def test_a_device_without_readings(device):
    state = device.state
    assert (state.temperature_c(), state.available_memory_bytes(), state.power_mode()) == (None, None, None)
    assert not state.on_battery()


def test_the_temperature_is_that_of_the_hottest_zone(device):
    device.zone(0, "CPU-therm", "41500")
    device.zone(1, "GPU-therm", "63250")
    device.zone(2, "PMIC-Die", "100000")  # says so always
    device.zone(3, "CV0-therm", "")  # switched off
    (device.root / "sys/class/thermal/thermal_zone4").mkdir()
    (device.root / "sys/class/thermal/cooling_device0").mkdir()
    assert device.state.temperature_c() == 63.25
    device.zone(1, "GPU-therm", "-40000")
    assert device.state.temperature_c() == 41.5


def test_available_memory_is_read_from_meminfo(device):
    device.write("proc/meminfo", "MemTotal:  100 kB\nMemAvailable:      2048 kB\nSwapFree: 9 kB")
    assert device.state.available_memory_bytes() == 2 << 20


ADAPTER = {"type": "Mains", "online": "1"}
UNPLUGGED = {"type": "Mains", "online": "0"}
DISCHARGING = {"type": "Battery", "status": "Discharging"}
FULL = {"type": "Battery", "status": "Full"}
MOUSE = {"type": "Battery", "status": "Discharging", "scope": "Device"}


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ([], False),
        ([ADAPTER], False),
        ([UNPLUGGED], False),  # a board fed otherwise, with an empty socket
        ([ADAPTER, DISCHARGING], False),
        ([UNPLUGGED, DISCHARGING], True),
        ([UNPLUGGED, FULL], True),
        ([DISCHARGING], True),
        ([FULL], False),
        ([MOUSE], False),
        ([UNPLUGGED, MOUSE], False),
        ([UNPLUGGED, {"type": "USB", "online": "1"}, DISCHARGING], False),
        ([{"type": "USB", "online": "0"}, DISCHARGING], True),
    ],
)
def test_a_device_is_on_battery_only_if_no_adapter_is_plugged_in(device, supplies, expected):
    for index, supply in enumerate(supplies):
        device.supply(f"supply{index}", **supply)
    assert device.state.on_battery() is expected


CONF = """# comment < POWER_MODEL ID=9 NAME=WRONG >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=15W >
< PM_CONFIG DEFAULT=2 >"""


def test_the_power_mode_of_a_jetson_has_a_number_and_a_name(device):
    device.write("var/lib/nvpmodel/status", "pmode:0002 fmode:quiet")
    assert device.state.power_mode() == PowerMode(2, "")
    device.write("etc/nvpmodel.conf", CONF)
    assert device.state.power_mode() == PowerMode(2, "15W")
    assert (str(PowerMode(2, "15W")), str(PowerMode(2, ""))) == ("2 (15W)", "2")
    device.write("var/lib/nvpmodel/status", "pmode:0009")
    assert device.state.power_mode() == PowerMode(9, "")


def test_this_machine_can_be_read():
    state = DeviceState()
    assert state.available_memory_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    zones = [zone for zone in Path("/sys/class/thermal").glob("thermal_zone*") if (zone / "temp").is_file()]
    temperature = state.temperature_c()
    assert (temperature is None) if not zones else (temperature is None or -60 < temperature < 150)
    assert isinstance(state.on_battery(), bool)
    assert (state.power_mode() is not None) == Path("/var/lib/nvpmodel/status").is_file()
