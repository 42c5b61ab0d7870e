import os
import sys

import pytest

from service.doctor.check import Machine, clock_is_synchronized, run_command
from tests.support.machines import machine


@pytest.mark.parametrize(
    ("mode", "uid", "groups", "allowed"),
    [
        (0o660, 0, set(), True),  # root needs no bit
        (0o600, 7, set(), True),
        (0o060, 7, set(), False),  # the owner's bits count for the owner, even if others have more
        (0o660, 8, {44}, True),
        (0o640, 8, {44}, False),
        (0o660, 8, {45}, False),
        (0o666, 8, set(), True),
        (0o604, 8, set(), False),
    ],
)
def test_who_may_use_a_file(tmp_path, mode, uid, groups, allowed):
    status = os.stat_result((mode | 0o100000, 1, 1, 1, 7, 44, 0, 0, 0, 0))
    assert machine(tmp_path, uid=uid, groups=frozenset(groups)).may_use(status) is allowed


def test_names_of_users_and_groups(tmp_path):
    here = machine(
        tmp_path, {"/etc/passwd": "root:x:0:0::/root:\nedged:x:998:997::/:\n", "/etc/group": "video:x:44:\n"}
    )
    assert (here.group(44), here.group(45)) == ("video", "45")
    assert machine(tmp_path, uid=998).user() == "edged"
    assert machine(tmp_path / "empty", uid=998).user() == "998"


def test_small_files(tmp_path):
    here = machine(tmp_path, {"/a": " 12\n", "/b": "max\n"})
    assert [here.number(name) for name in ("/a", "/b", "/none")] == [12, None, None]
    (tmp_path / "c").write_bytes(b"\xff")
    assert here.read("/c") is None


def test_commands_that_are_not_there_or_fail_say_nothing():
    assert run_command([sys.executable, "-c", "print(7)"]) == "7\n"
    assert run_command([sys.executable, "-c", "raise SystemExit(1)"]) is None
    assert run_command(["/nowhere/command"]) is None


def test_the_real_machine():
    assert Machine().read("/proc/meminfo").startswith("MemTotal:")
    assert clock_is_synchronized() in (True, False, None)
