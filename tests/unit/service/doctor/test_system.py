import pytest

from service.doctor.system import check_systemd
from tests.support.machines import levels, machine, only

RUNNING = {"/run/systemd/system/.keep": ""}


@pytest.mark.parametrize(
    ("version", "level", "detail"),
    [
        ("systemd 244 (244.1)\n+PAM", "warn", "244; edged.service needs 245"),
        ("systemd 245 (245.4-4ubuntu3)\n", "ok", "without LoadCredential (247), notify-reload (253)"),
        ("systemd 252 (252.39-1~deb12u1)\n", "ok", "without notify-reload (253)"),
        ("systemd 255 (255)\n", "ok", "255; not running here"),
        (None, "ok", "let another supervisor start `edged run`"),
    ],
)
def test_the_version(tmp_path, version, level, detail):
    check = only(check_systemd(machine(tmp_path, commands={"systemctl --version": version}), None))
    assert check.level == level
    assert detail in check.detail


@pytest.mark.parametrize(
    ("load", "active", "unit_file", "level", "detail"),
    [
        ("loaded", "active", "enabled", "ok", "active, enabled"),
        ("loaded", "failed", "enabled", "warn", "has failed"),
        ("loaded", "active", "disabled", "warn", "not started when the machine starts"),
        ("not-found", "inactive", "", "ok", "not installed"),
    ],
)
def test_the_unit(tmp_path, load, active, unit_file, level, detail):
    shown = f"LoadState={load}\nActiveState={active}\nUnitFileState={unit_file}\n"
    commands = {"systemctl --version": "systemd 255 (255)\n", "systemctl show": shown}
    found = levels(check_systemd(machine(tmp_path, RUNNING, commands=commands), None))
    assert found["systemd"] == ("ok", "255")
    assert found["edged.service"][0] == level
    assert detail in found["edged.service"][1]


def test_a_manager_that_does_not_answer_is_no_finding(tmp_path):
    commands = {"systemctl --version": "systemd 255 (255)\n"}
    assert list(levels(check_systemd(machine(tmp_path, RUNNING, commands=commands), None))) == ["systemd"]
