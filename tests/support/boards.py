"""What /proc and /sys hold on two machines, written down after public listings of such: there was no Jetson at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

UNREADABLE = None  # the kernel refuses, as it does for a part that is switched off

_GPU = "sys/devices/platform/bus@0/17000000.gpu"
_JETSON_ZONES: Mapping[int, tuple[str, str | None, Mapping[int, tuple[str, str]]]] = {
    0: ("cpu-thermal", "52406", {0: ("passive", "99000"), 1: ("active", "45000"), 2: ("critical", "104500")}),
    1: ("gpu-thermal", "50218", {0: ("critical", "104500"), 1: ("passive", "99000")}),
    2: ("cv0-thermal", UNREADABLE, {0: ("critical", "104500")}),
    3: ("cv1-thermal", "-256000", {}),
    5: ("soc0-thermal", "49812", {}),
    8: ("tj-thermal", "52406", {0: ("passive", "-1"), 1: ("critical", "104500")}),
    9: ("PMIC-Die", "100000", {}),
    10: ("soc0-thermal", "50000", {}),
}


def jetson(root: Path) -> Path:
    """An Orin Nano developer kit with JetPack 6."""
    files: dict[str, str | None] = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/meminfo": "MemTotal:        7802752 kB\nMemFree:         1202232 kB\nMemAvailable:    4407968 kB\n"
        "HugePages_Total:       0\nNvMapMemFree:          0 kB\nNvMapMemUsed:     805068 kB\n",
        f"{_GPU}/load": "437\n",
        f"{_GPU}/devfreq/17000000.gpu/cur_freq": "306000000\n",
        f"{_GPU}/devfreq/17000000.gpu/max_freq": "624750000\n",
        "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",  # not the GPU
    }
    for policy, khz in ((0, "1510400"), (4, "729600")):
        folder = f"sys/devices/system/cpu/cpufreq/policy{policy}"
        files |= {f"{folder}/scaling_cur_freq": f"{khz}\n", f"{folder}/cpuinfo_max_freq": "1510400\n"}
    for number, (kind, temperature, trips) in _JETSON_ZONES.items():
        folder = f"sys/class/thermal/thermal_zone{number}"
        files |= {f"{folder}/type": f"{kind}\n", f"{folder}/temp": temperature and f"{temperature}\n"}
        for trip, (what, limit) in trips.items():
            files |= {f"{folder}/trip_point_{trip}_type": what, f"{folder}/trip_point_{trip}_temp": limit}
    _write(root, files)
    (root / f"{_GPU}/devfreq/17000000.gpu/device").symlink_to("../..")
    (root / "sys/class/devfreq/17000000.gpu").symlink_to(root / f"{_GPU}/devfreq/17000000.gpu")
    return root


def desktop(root: Path, cores: int = 4) -> Path:
    """A PC with a frequency a core."""
    files: dict[str, str | None] = {
        "sys/class/dmi/id/product_name": "OptiPlex 7090\n",
        "proc/meminfo": "MemTotal:       16252928 kB\nMemAvailable:   12000000 kB\n",
        "sys/class/thermal/thermal_zone0/type": "acpitz\n",
        "sys/class/thermal/thermal_zone0/temp": "27800\n",
        "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone1/temp": "41000\n",
        "sys/class/thermal/cooling_device0/type": "Processor\n",
    }
    for core in range(cores):
        folder = f"sys/devices/system/cpu/cpufreq/policy{core}"
        files |= {f"{folder}/scaling_cur_freq": f"{800 + core}000\n", f"{folder}/cpuinfo_max_freq": "4600000\n"}
    _write(root, files)
    return root


def _write(root: Path, files: Mapping[str, str | None]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is UNREADABLE:
            path.mkdir()  # reading a folder fails, too
        else:
            path.write_text(text)
