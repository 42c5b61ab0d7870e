import os

import pytest

from service.config.load import load_config
from service.doctor.resources import check_clock, check_inotify, check_memory
from tests.support.machines import MEMINFO, NOW, machine, only, write

GIB = 1 << 20  # in kB
INOTIFY = "/proc/sys/fs/inotify"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "edged.yaml"
    path.write_text("state_dir: state\nmodels: [{name: m, calibration: {dir: images}}]\nworker: {memory_max: 3GiB}\n")
    return load_config(path)


@pytest.mark.parametrize(("available", "level"), [(GIB, "ok"), (GIB - 1, "warn"), (0, "warn")])
def test_memory(tmp_path, available, level):
    here = machine(tmp_path, {"/proc/meminfo": MEMINFO.format(total=8 * GIB, available=available)})
    assert only(check_memory(here, None)).level == level


@pytest.mark.parametrize(("available", "level"), [(4 * GIB, "ok"), (2 * GIB, "warn")])
def test_the_workers_limit_must_fit(tmp_path, config, available, level):
    here = machine(tmp_path, {"/proc/meminfo": MEMINFO.format(total=8 * GIB, available=available)})
    check = only(check_memory(here, config))
    assert (check.level, "worker.memory_max" in check.fix) == (level, level == "warn")


@pytest.mark.parametrize(
    ("group", "folder", "limit", "usage"),
    [
        ("0::/system.slice/edged.service", "", "memory.max", "memory.current"),
        ("0::/system.slice/edged.service", "", "memory.high", "memory.current"),
        ("4:memory:/system.slice/edged.service", "memory/", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_what_the_control_group_leaves_counts(tmp_path, group, folder, limit, usage):
    slice_ = f"/sys/fs/cgroup/{folder}system.slice"
    files = {
        "/proc/meminfo": MEMINFO.format(total=8 * GIB, available=4 * GIB),
        "/proc/self/cgroup": f"1:name=x:/\n{group}\n",
        f"{slice_}/edged.service/{limit}": "max\n",
        f"{slice_}/edged.service/{usage}": str(100 << 20),
        f"{slice_}/{usage}": str(100 << 20),
    }
    assert only(check_memory(machine(tmp_path, files), None)).level == "ok"
    files[f"{slice_}/{limit}"] = str(612 << 20)
    check = only(check_memory(machine(tmp_path, files), None))
    assert (check.level, "limit leaves 512.0 MiB" in check.detail) == ("warn", True)


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x\nMemAvailable: y\n"])
def test_memory_that_cannot_be_read(tmp_path, text):
    assert only(check_memory(machine(tmp_path, {"/proc/meminfo": text}), None)).level == "warn"


def with_inotify(root, instances, watches, used=()):
    """`used`: watches of each instance in use."""
    write(root, {f"{INOTIFY}/max_user_instances": instances, f"{INOTIFY}/max_user_watches": watches})
    for number, count in enumerate(used):
        told = "pos:\t0\n" + "inotify wd:1 ino:2 sdev:3\n" * count
        write(root, {f"/proc/7/fdinfo/{number}": told})
        (root / "proc/7/fd").mkdir(exist_ok=True)
        (root / f"proc/7/fd/{number}").symlink_to("anon_inode:inotify")
    return machine(root)


@pytest.mark.parametrize(
    ("instances", "watches", "used", "level", "fix"),
    [
        ("128", "8192", [], "ok", ""),
        ("4", "8192", [1, 1], "ok", ""),
        ("4", "8192", [1, 1, 1], "warn", "max_user_instances=128"),
        ("128", "30", [10, 4], "ok", ""),
        ("128", "30", [10, 5], "warn", "max_user_watches=8192"),
        ("?", "8192", [], "warn", "nothing"),
    ],
)
def test_inotify(tmp_path, instances, watches, used, level, fix):
    check = only(check_inotify(with_inotify(tmp_path, instances, watches, used), None))
    assert check.level == level
    assert fix in check.fix


def test_without_inotify_the_folder_is_polled(tmp_path):
    assert only(check_inotify(machine(tmp_path), None)).level == "warn"


def test_each_model_takes_a_watch(tmp_path, config):
    here = with_inotify(tmp_path, "128", "30", [14])
    assert only(check_inotify(here, None)).level == "ok"
    assert only(check_inotify(here, config)).level == "warn"


@pytest.mark.parametrize(
    ("now", "synchronized", "level", "detail"),
    [
        (NOW, True, "ok", "synchronized"),
        (NOW, None, "ok", "not known"),
        (NOW, False, "warn", "not synchronized"),
        (0.0, True, "warn", "never set"),
    ],
)
def test_the_clock(tmp_path, now, synchronized, level, detail):
    check = only(check_clock(machine(tmp_path, now=lambda: now, synchronized=lambda: synchronized), None))
    assert check.level == level
    assert detail in check.detail


def test_timesyncd_is_believed(tmp_path):
    here = machine(tmp_path, {"/run/systemd/timesync/synchronized": ""}, synchronized=lambda: False)
    assert only(check_clock(here, None)).level == "ok"


def test_a_clock_that_went_back(tmp_path, config):
    (tmp_path / "state").mkdir()
    journal = tmp_path / "state" / "journal.db"
    journal.touch()
    for later_s, level in ((3600, "ok"), (90_000, "warn")):
        os.utime(journal, (NOW + later_s, NOW + later_s))
        assert only(check_clock(machine(tmp_path), config)).level == level
