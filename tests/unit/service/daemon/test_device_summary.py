from service.daemon.device_summary import device_summary
from tests.support.boards import jetson


def test_the_hottest_zone_and_the_disk_are_read(tmp_path):
    summary = device_summary(tmp_path, jetson(tmp_path / "board"))
    assert (summary["zone"], summary["temperature_c"], summary["temperature_limit_c"]) == ("cpu-thermal", 52.406, 99.0)
    assert 0 < summary["disk_free_bytes"] < summary["disk_total_bytes"]


def test_what_cannot_be_read_is_none(tmp_path):
    assert set(device_summary(tmp_path / "missing", tmp_path).values()) == {None}
