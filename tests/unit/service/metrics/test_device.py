import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.metrics.device import DeviceCollector
from tests.support.boards import desktop, jetson


def registry(root, state_dir=None):
    found = CollectorRegistry()
    found.register(DeviceCollector(state_dir, root))
    return found


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("device_temperature_celsius", {"zone": "gpu-thermal"}, 50.218),
        ("device_temperature_limit_celsius", {"zone": "gpu-thermal"}, 99.0),
        ("device_temperature_limit_celsius", {"zone": "soc0-thermal"}, None),
        ("device_temperature_celsius", {"zone": "cv0-thermal"}, None),
        ("device_cpu_frequency_hertz", {"cpu": "4"}, 729.6e6),
        ("device_cpu_frequency_max_hertz", {"cpu": "4"}, 1510.4e6),
        ("device_gpu_frequency_hertz", {"gpu": "17000000.gpu"}, 306e6),
        ("device_gpu_frequency_max_hertz", {"gpu": "17000000.gpu"}, 624.75e6),
        ("device_gpu_load_ratio", {"gpu": "17000000.gpu"}, 0.437),
        ("device_memory_total_bytes", {}, 7_802_752 * 1024),
        ("device_memory_available_bytes", {}, 4_407_968 * 1024),
        ("device_gpu_memory_used_bytes", {}, 805_068 * 1024),
    ],
)
def test_readings_of_a_jetson(tmp_path, name, labels, value):
    assert registry(jetson(tmp_path)).get_sample_value(f"edged_{name}", labels) == value


def test_the_board_is_in_the_labels(tmp_path):
    exposed = generate_latest(registry(jetson(tmp_path))).decode()
    assert 'edged_device_info{board="NVIDIA Jetson Orin Nano Developer Kit",machine="' in exposed


def test_a_missing_reading_has_no_sample(tmp_path):
    exposed = generate_latest(registry(tmp_path)).decode()
    assert "# TYPE edged_device_temperature_celsius gauge\n# HELP" in exposed
    assert "edged_device_memory_total_bytes 0" not in exposed


def test_the_number_of_series_of_a_server_with_many_cores_is_bounded(tmp_path):
    exposed = generate_latest(registry(desktop(tmp_path, cores=100))).decode()
    assert exposed.count("edged_device_cpu_frequency_hertz{") == 32


def test_free_space_on_the_disk(tmp_path):
    found = registry(tmp_path, tmp_path)
    total = found.get_sample_value("edged_state_disk_total_bytes")
    assert 0 < found.get_sample_value("edged_state_disk_free_bytes") <= total
