from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.system import hardware
from service.system.hardware import Clock, Zone
from tests.support.boards import desktop, jetson


@pytest.fixture
def orin(tmp_path):
    return jetson(tmp_path)


def test_thermal_zones_of_a_jetson(orin):
    assert hardware.zones(orin) == [
        Zone("cpu-thermal", 52.406, 99.0),  # the fan's trip at 45 degrees is no limit
        Zone("gpu-thermal", 50.218, 99.0),
        # cv0 is switched off, cv1 as well, and PMIC-Die is a constant
        Zone("soc0-thermal", 49.812, None),
        Zone("tj-thermal", 52.406, 104.5),  # its passive trip is switched off
        Zone("soc0-thermal10", 50.0, None),  # a name once more
    ]


def test_clocks_of_a_jetson(orin):
    assert hardware.cpus(orin) == [Clock("0", 1_510_400_000, 1_510_400_000), Clock("4", 729_600_000, 1_510_400_000)]
    assert hardware.gpus(orin) == [Clock("17000000.gpu", 306_000_000, 624_750_000, 0.437)]


def test_cpu_and_gpu_of_a_jetson_share_the_memory(orin):
    memory = hardware.memory(orin)
    assert memory["MemTotal"] == 7_802_752 * 1024
    assert memory["NvMapMemUsed"] == 805_068 * 1024
    assert "HugePages_Total" not in memory  # a number of pages, no bytes


def test_the_board_has_the_name_of_its_vendor(orin, tmp_path):
    assert hardware.board(orin) == "NVIDIA Jetson Orin Nano Developer Kit"
    (tmp_path / "proc/device-tree/model").write_bytes(b"\x1b[31m\xff" + b"x" * 100 + b"\0")
    assert hardware.board(tmp_path) == "[31m�" + "x" * 59


def test_a_pc_has_zones_and_clocks(tmp_path):
    root = desktop(tmp_path, cores=12)
    assert hardware.zones(root) == [Zone("acpitz", 27.8, None), Zone("x86_pkg_temp", 41.0, None)]
    assert [clock.name for clock in hardware.cpus(root)] == [str(core) for core in range(12)]  # by number, not by name
    assert hardware.gpus(root) == []
    assert hardware.board(root) == "OptiPlex 7090"


def test_a_machine_without_readings(tmp_path):
    found = [hardware.zones(tmp_path), hardware.cpus(tmp_path), hardware.gpus(tmp_path), hardware.memory(tmp_path)]
    assert found == [[], [], [], {}]
    assert hardware.board(tmp_path) == ""


def test_this_machine_can_be_read():
    assert hardware.memory()["MemAvailable"] < hardware.memory()["MemTotal"]
    assert all(-40 < zone.celsius < 150 for zone in hardware.zones())
    assert all(clock.hertz > 1e6 for clock in hardware.cpus())


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_files_with_arbitrary_contents_never_raise(tmp_path_factory, data):
    root = jetson(Path(tmp_path_factory.mktemp("odd")))
    for file in [path for path in root.rglob("*") if path.is_file()]:
        file.write_bytes(data)
    hardware.zones(root)
    hardware.cpus(root)
    hardware.gpus(root)
    hardware.memory(root)
    assert hardware.board(root).isprintable()
